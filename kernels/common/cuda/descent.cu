#include "kernels/common/cuda/descent.h"

#include <string>
#include <utility>

#include "kernels/common/cuda/capture.h"
#include "kernels/common/cuda/check.cuh"
#include "kernels/common/cuda/device_buffer.h"

namespace paperlab::kernels {
namespace {

// A replay costs the host some microseconds, more than the kernels of a small step.
constexpr int kStepsPerGraph = 16;

class Stream {
 public:
  Stream() { PAPERLAB_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  Context context() const { return {stream_}; }
  void wait() const { PAPERLAB_CUDA_CHECK(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

std::string problem_of(cudaError_t status) {
  return status == cudaSuccess ? std::string() : cudaGetErrorString(status);
}

struct CaptureCalls {
  using Graph = cudaGraph_t;
  using Executable = cudaGraphExec_t;

  cudaStream_t stream;

  std::string begin() const {
    return problem_of(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  }
  std::string end(Graph& graph) const { return problem_of(cudaStreamEndCapture(stream, &graph)); }
  std::string instantiate(Graph graph, Executable& executable) const {
    return problem_of(cudaGraphInstantiate(&executable, graph, 0));
  }
  void destroy(Graph graph) const { cudaGraphDestroy(graph); }
  void clear_error() const { cudaGetLastError(); }
};

// `count` steps captured once.
class StepGraph {
 public:
  StepGraph(OneLayerPlanCuda& plan, const DescentState& state, int count, const Context& context) {
    CaptureCalls calls{context.stream};
    graph_ = captured(calls, "descent_cuda", [&] {
      for (int i = 0; i < count; ++i) {
        plan.step(state, context);
      }
    });
  }
  ~StepGraph() { cudaGraphExecDestroy(graph_); }
  StepGraph(const StepGraph&) = delete;
  StepGraph& operator=(const StepGraph&) = delete;
  void launch(const Context& context) const {
    PAPERLAB_CUDA_CHECK(cudaGraphLaunch(graph_, context.stream));
  }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace

struct DescentCuda::Device {
  std::unique_ptr<OneLayerPlanCuda> plan;
  int max_length;
  double attention_scale;
  std::size_t width = 2 * static_cast<std::size_t>(max_length);
  Stream stream = {};
  DeviceBuffer<double> u{width};
  DeviceBuffer<double> w{width * width};
  DeviceBuffer<double> gradient_u{width};
  DeviceBuffer<double> gradient_w{width * width};
  DeviceBuffer<OneLayerEvaluation> evaluation{1};
  DeviceBuffer<DescentControl> control{1};
  std::unique_ptr<StepGraph> one_step = nullptr;
  std::unique_ptr<StepGraph> many_steps = nullptr;

  OneLayerParameters upload(std::span<const double> from_u, std::span<const double> from_w) {
    require<ShapeError>(from_u.size() == width && from_w.size() == width * width, "descent_cuda",
                        "u must be [" + std::to_string(width) + "] and w its square",
                        std::to_string(from_u.size()) + " and " + std::to_string(from_w.size()));
    u.upload(from_u, stream.context());
    w.upload(from_w, stream.context());
    return {max_length, attention_scale, u.data(), w.data()};
  }

  // A kernel is loaded at its first launch, which may not be part of a capture: a step of size 0
  // comes first.
  void capture() {
    const DescentState state{max_length, attention_scale,   u.data(),
                             w.data(),   gradient_w.data(), control.data()};
    const DescentControl still;
    control.upload({&still, 1}, stream.context());
    plan->step(state, stream.context());
    stream.wait();
    auto one = std::make_unique<StepGraph>(*plan, state, 1, stream.context());
    many_steps = std::make_unique<StepGraph>(*plan, state, kStepsPerGraph, stream.context());
    one_step = std::move(one);  // both or none
  }
};

DescentCuda::DescentCuda(std::unique_ptr<OneLayerPlanCuda> plan, int max_length,
                         double attention_scale)
    : device_(new Device{std::move(plan), max_length, attention_scale}) {
  // NaN, so that an entry that no kernel writes cannot pass for a gradient.
  const Context context = device_->stream.context();
  for (DeviceBuffer<double>* gradient : {&device_->gradient_u, &device_->gradient_w}) {
    PAPERLAB_CUDA_CHECK(
        cudaMemsetAsync(gradient->data(), 0xFF, gradient->size() * sizeof(double), context.stream));
  }
}

DescentCuda::~DescentCuda() = default;

void DescentCuda::gradient(std::span<const double> u, std::span<const double> w,
                           std::span<double> of_u, std::span<double> of_w) {
  const Context context = device_->stream.context();
  device_->plan->gradient(device_->upload(u, w),
                          {device_->gradient_u.data(), device_->gradient_w.data()}, context);
  device_->gradient_u.download(of_u, context);
  device_->gradient_w.download(of_w, context);
  device_->plan->check_spread(context);
}

OneLayerEvaluation DescentCuda::evaluate(std::span<const double> u, std::span<const double> w) {
  const Context context = device_->stream.context();
  OneLayerEvaluation out;
  device_->plan->evaluate(device_->upload(u, w), device_->evaluation.data(), context);
  device_->evaluation.download({&out, 1}, context);
  device_->plan->check_spread(context);
  return out;
}

std::int64_t DescentCuda::descend(std::span<double> u, std::span<double> w, double u_step,
                                  double w_step, std::int64_t count) {
  const Context context = device_->stream.context();
  DescentControl control{u_step, w_step};
  if (device_->one_step == nullptr) {
    device_->upload(u, w);
    device_->capture();
  }
  device_->upload(u, w);
  device_->control.upload({&control, 1}, context);
  for (std::int64_t i = 0; i < count / kStepsPerGraph; ++i) {
    device_->many_steps->launch(context);
  }
  for (std::int64_t i = 0; i < count % kStepsPerGraph; ++i) {
    device_->one_step->launch(context);
  }
  device_->u.download(u, context);
  device_->w.download(w, context);
  device_->control.download({&control, 1}, context);
  device_->plan->check_spread(context);  // waits
  return control.first_not_finite;
}

}  // namespace paperlab::kernels
