#pragma once
// Roles of a GPU block that run beside each other and wait at barriers (mbarrier.h), on the CPU: a
// role is a thread, one of them runs at a time, and where it must wait, or ends a phase, another
// goes on. Copies by the copy engine happen at once or, in the other extreme, when nobody else can
// go on.

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/common/cuda/mbarrier.h"

namespace paperlab::test {

class Roles {
 public:
  // is_late: copies happen as late as they may, and the last role goes first.
  explicit Roles(bool is_late) : is_late_(is_late) {}

  // Runs them to their ends. Throws what one of them threw, std::logic_error if none can go on, if
  // one waits for a phase that its parity does not tell, or if copies are left.
  void run(std::vector<std::function<void()>> roles);

  // Of the role that runs.
  void init(kernels::Barrier& barrier, int arrivals);
  void arrive(kernels::Barrier& barrier);
  void expect(kernels::Barrier& barrier, std::int64_t bytes);
  void await(kernels::Barrier& barrier, int phase);
  // `copy` brings so many bytes.
  void fetch(kernels::Barrier& barrier, std::int64_t bytes, std::function<void()> copy);

  bool is_late() const { return is_late_; }

 private:
  struct State {
    int arrivals;
    int pending;
    std::int64_t bytes;
    std::int64_t num_ended;
  };
  struct Role {
    std::function<bool()> is_ready;  // empty: it can go on
    bool is_done = false;
  };

  State& state_of(const kernels::Barrier& barrier);
  static bool end_phase_if_complete(State& state);
  void play(std::size_t role, const std::function<void()>& body);
  void give_way(std::function<bool()> is_ready);
  void pass_on();
  int next_role() const;
  void fail(const char* reason);

  bool is_late_;
  std::vector<State> barriers_;
  std::vector<Role> roles_;
  std::deque<std::function<void()>> copies_;
  int running_ = 0;
  std::exception_ptr failure_;
  std::mutex mutex_;
  std::condition_variable turn_;
};

}  // namespace paperlab::test
