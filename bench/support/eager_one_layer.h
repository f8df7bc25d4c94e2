#pragma once
// The baseline: a training step of the one-layer transformer in eager LibTorch, with autograd on
// the explicit batch of all strings. Index tensors, labels and weights are made once; float64.

#include <memory>
#include <vector>

namespace paperlab::bench {

enum class EagerBatch {
  kPerLength,  // one batch for each length, as a training script would write it
  kPadded,     // all lengths in one batch, absent positions masked: fewer calls, more elements
  // Not softmax by string but the kernels' own idea in eager calls: exponentials of a query's keys
  // once, then Z and N as products with one-hot rows.
  kTabulated,
};

// Index order of the public API: u [2 Lmax], w row-major [key, query].
struct EagerParameters {
  std::vector<double> u;
  std::vector<double> w;
};

class EagerEvenPairs {
 public:
  EagerEvenPairs(int max_length, double attention_scale, EagerBatch batch);
  ~EagerEvenPairs();
  EagerEvenPairs(const EagerEvenPairs&) = delete;
  EagerEvenPairs& operator=(const EagerEvenPairs&) = delete;

  void set(const EagerParameters& parameters);
  EagerParameters get() const;
  EagerParameters gradient();
  // Forward, backward and the update of u and w, each with its rate.
  void step(double u_rate, double w_rate);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// LibTorch's threads inside one operation.
void set_eager_threads(int num_threads);

}  // namespace paperlab::bench
