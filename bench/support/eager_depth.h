#pragma once
// The baselines of depth_aggregate_bench: LibTorch's ways to sum the states of a decoder's blocks,
// on the same memory, for a pass over all blocks; float32.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace paperlab::bench {

// After block l (from 0) there are l + 2 states and num_ways streams, after the last block one.
struct DepthPass {
  std::int64_t num_blocks = 0;  // L
  std::int64_t num_tokens = 0;  // N
  std::int64_t width = 0;       // D
  std::int64_t num_ways = 4;
  float* states = nullptr;      // [L + 1, N, D]
  float* grad_out = nullptr;    // [C, N, D], of every block's streams
  std::vector<float*> weights;  // of each block [N, C, J]
  std::vector<float*> w1;       // [D, C J]
  std::vector<float*> w2;       // [C J, C J]
  std::vector<float*> bias;     // [C J]

  std::int64_t sources(std::int64_t block) const { return block + 2; }
  std::int64_t ways(std::int64_t block) const { return block + 1 == num_blocks ? 1 : num_ways; }
};

enum class EagerDepthForm {
  kLoop,     // by way and source: a product, then a sum
  kAddcmul,  // the same in place
  kBmm,      // a product of matrices by token, on the buffer of all states
  kStack,    // the same, states stacked at each block
  kEinsum,   // on the buffer
};
std::string name_of(EagerDepthForm form);

class EagerDepth {
 public:
  // The memory must outlive this.
  explicit EagerDepth(const DepthPass& pass);
  ~EagerDepth();
  EagerDepth(const EagerDepth&) = delete;
  EagerDepth& operator=(const EagerDepth&) = delete;

  void forward(EagerDepthForm form);  // under no-grad
  // With weights that each block generates: norm, product, gelu, product, then the form.
  void forward_generated(EagerDepthForm form);
  // Gradients of all states and weights, or of what generates them: kBmm in place, kAddcmul too if
  // weights are given, the others by autograd, for which record() keeps the graph of a forward
  // pass.
  void record(EagerDepthForm form, bool generates);
  void backward(EagerDepthForm form);
  void forget();

  // Of the last pass: stream `way` of the newest block that has it.
  double stream(std::int64_t way, std::int64_t at) const;
  double grad_state(std::int64_t state, std::int64_t at) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// LibTorch's threads inside one operation.
void set_depth_threads(int num_threads);

}  // namespace paperlab::bench
