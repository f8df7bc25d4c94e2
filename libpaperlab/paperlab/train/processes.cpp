#include "paperlab/train/processes.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <exception>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <utility>
#include <vector>

namespace paperlab::train {
namespace {

// The first line, without the place in a library's source that it may begin with.
std::string reason_of(const std::string& message) {
  const std::string line = message.substr(0, message.find('\n'));
  const std::size_t place = line.rfind('[', 0) == 0 ? line.find("] ") : std::string::npos;
  return place == std::string::npos ? line : line.substr(place + 2);
}

// Whatever a backend throws means that no more can be done together.
template <class F>
auto together(const F& work) {
  try {
    return work();
  } catch (const c10::Error& error) {
    throw LostProcess(reason_of(error.what_without_backtrace()));
  } catch (const std::exception& error) {
    throw LostProcess(reason_of(error.what()));
  }
}

class Group final : public Processes {
 public:
  explicit Group(c10::intrusive_ptr<c10d::ProcessGroup> group) : group_(std::move(group)) {}

  std::int64_t rank() const override { return group_->getRank(); }
  std::int64_t size() const override { return group_->getSize(); }

  Wait start_sum(const at::Tensor& x) override {
    return started([&](std::vector<at::Tensor>& tensors) { return group_->allreduce(tensors); }, x);
  }

  Wait start_copy(const at::Tensor& x, std::int64_t from) override {
    c10d::BroadcastOptions options;
    options.rootRank = from;
    return started(
        [&](std::vector<at::Tensor>& tensors) { return group_->broadcast(tensors, options); }, x);
  }

 private:
  template <class F>
  static Wait started(const F& start, const at::Tensor& x) {
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> tensors = {x};
    const c10::intrusive_ptr<c10d::Work> work = together([&] { return start(tensors); });
    return [work] {
      const bool is_done = together([&] { return work->wait(); });
      if (!is_done) {
        throw LostProcess("the operation was ended");
      }
    };
  }

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
};

}  // namespace

std::shared_ptr<Processes> processes_of_group(const std::string& name) {
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  try {
    group = c10d::resolve_process_group(name);
  } catch (const c10::Error& error) {
    throw ValueError("fit: the name of a process group, got '" + name +
                     "': " + error.what_without_backtrace());
  }
  return std::make_shared<Group>(std::move(group));
}

}  // namespace paperlab::train
