#pragma once
// What transformers has made, and the same training by this library.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "experiments/vision/rows.h"

namespace paperlab::experiments::vision {

// All pictures of a recipe: train before valid before test.
struct Pictures {
  at::Tensor pixels;  // uint8 [N, 1, height, width]
  at::Tensor labels;  // int64 [N]
};

// \throws IoError, ValueError, DTypeError  as data::ImageFolder.
Pictures open_pictures(const std::string& folder);

// Losses by step, and accuracies by evaluation.
struct Curves {
  std::vector<double> loss;
  std::vector<double> eval_step;  // steps done
  std::vector<double> accuracy;
};

// A folder that vit_worker.py has written.
struct Peer {
  std::string folder;
  at::Tensor rows;       // int64 [steps, batch]: pictures of each step
  at::Tensor test_rows;  // int64 [M]
  Curves curves;
  std::vector<double> moved_loss;  // of the twin with moved weights
  at::Tensor logits;               // [M, classes] after the last step
};

// \throws IoError, ValueError, DTypeError  if it is no such folder.
Peer open_peer(const std::string& folder);

// Our side.
struct Outcome {
  Curves curves;
  at::Tensor logits;   // [M, classes] after the last step
  at::Tensor of_peer;  // [M, classes] by the weights that transformers has trained
};

// Trains from the peer's initial weights on its batches, on the calling thread. `on_step` is called
// after each step.
Outcome train(const Config& config, const Job& job, const Pictures& pictures, const Peer& peer,
              const std::function<void()>& on_step);

// bool [M]: where the largest logit is that of the label.
at::Tensor hits(const at::Tensor& logits, const Pictures& pictures, const Peer& peer);

}  // namespace paperlab::experiments::vision
