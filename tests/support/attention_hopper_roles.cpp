#include "tests/support/attention_hopper_roles.h"

#include <cstddef>
#include <stdexcept>
#include <utility>

namespace paperlab::test {

void Roles::run(std::vector<std::function<void()>> roles) {
  roles_.assign(roles.size(), {});
  running_ = next_role();
  std::vector<std::thread> threads;
  threads.reserve(roles.size());
  for (std::size_t i = 0; i < roles.size(); ++i) {
    threads.emplace_back([this, i, &roles] { play(i, roles[i]); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  if (failure_ == nullptr && !copies_.empty()) {
    fail("roles end with copies under way");
  }
  if (failure_ != nullptr) {
    std::rethrow_exception(failure_);
  }
}

void Roles::play(std::size_t role, const std::function<void()>& body) {
  {
    std::unique_lock lock(mutex_);
    turn_.wait(lock, [&] { return running_ == static_cast<int>(role); });
  }
  try {
    if (failure_ == nullptr) {
      body();
    }
  } catch (...) {
    if (failure_ == nullptr) {
      failure_ = std::current_exception();
    }
  }
  roles_[role].is_done = true;
  pass_on();
}

// --- barriers ----------------------------------------------------------------------------------

void Roles::init(kernels::Barrier& barrier, int arrivals) {
  barrier.state = barriers_.size();
  barriers_.push_back({arrivals, arrivals, 0, 0});
}

Roles::State& Roles::state_of(const kernels::Barrier& barrier) {
  if (barrier.state >= barriers_.size()) {
    throw std::logic_error("a barrier is used that was not initialized");
  }
  return barriers_[static_cast<std::size_t>(barrier.state)];
}

bool Roles::end_phase_if_complete(State& state) {
  const bool is_complete = state.pending == 0 && state.bytes == 0;
  if (is_complete) {
    state.pending = state.arrivals;
    ++state.num_ended;
  }
  return is_complete;
}

void Roles::arrive(kernels::Barrier& barrier) { expect(barrier, 0); }

void Roles::expect(kernels::Barrier& barrier, std::int64_t bytes) {
  State& state = state_of(barrier);
  state.bytes += bytes;
  --state.pending;
  if (end_phase_if_complete(state)) {
    give_way({});  // who waits for it goes on before what this role does next
  }
}

void Roles::await(kernels::Barrier& barrier, int phase) {
  State& state = state_of(barrier);
  const auto has_ended = [&state, phase] {
    const std::int64_t ahead = state.num_ended - phase;
    if (ahead < 0 || ahead > 1) {
      throw std::logic_error("a role waits for a phase that its parity does not tell");
    }
    return ahead == 1;
  };
  if (!has_ended()) {
    const std::size_t index = static_cast<std::size_t>(barrier.state);
    give_way([this, index, phase] { return barriers_[index].num_ended != phase; });
    if (!has_ended()) {
      throw std::logic_error("a role goes on before its phase has ended");
    }
  }
}

void Roles::fetch(kernels::Barrier& barrier, std::int64_t bytes, std::function<void()> copy) {
  const std::size_t index = static_cast<std::size_t>(barrier.state);
  state_of(barrier);
  auto arrival = [this, index, bytes, run = std::move(copy)] {
    run();
    barriers_[index].bytes -= bytes;
    end_phase_if_complete(barriers_[index]);
  };
  if (is_late_) {
    copies_.emplace_back(std::move(arrival));
  } else {
    arrival();
  }
}

// --- turns -------------------------------------------------------------------------------------

void Roles::give_way(std::function<bool()> is_ready) {
  const int me = running_;
  roles_[static_cast<std::size_t>(me)].is_ready = std::move(is_ready);
  pass_on();
  std::unique_lock lock(mutex_);
  turn_.wait(lock, [&] { return running_ == me; });
  roles_[static_cast<std::size_t>(me)].is_ready = {};
  if (failure_ != nullptr) {
    throw std::logic_error("another role failed");
  }
}

int Roles::next_role() const {
  const int count = static_cast<int>(roles_.size());
  for (int i = 1; i <= count; ++i) {
    const int index = (running_ + (is_late_ ? count - i : i)) % count;
    const Role& role = roles_[static_cast<std::size_t>(index)];
    if (!role.is_done && (failure_ != nullptr || !role.is_ready || role.is_ready())) {
      return index;
    }
  }
  return -1;
}

void Roles::pass_on() {
  bool are_done = true;
  for (const Role& role : roles_) {
    are_done = are_done && role.is_done;
  }
  int next = next_role();
  while (next < 0 && !are_done && !copies_.empty()) {
    copies_.front()();
    copies_.pop_front();
    next = next_role();
  }
  if (next < 0 && !are_done) {
    fail("no role can go on");
    next = next_role();
  }
  const std::scoped_lock lock(mutex_);
  running_ = next;
  turn_.notify_all();
}

void Roles::fail(const char* reason) {
  failure_ = std::make_exception_ptr(std::logic_error(reason));
}

}  // namespace paperlab::test
