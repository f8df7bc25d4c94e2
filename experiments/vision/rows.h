#pragma once
// The rows of the driver `vision` and what they share: the same training by this library and by
// transformers.

#include <cstdint>
#include <string>
#include <vector>

#include "experiments/common/run.h"

namespace paperlab::experiments::vision {

// Pictures and the model and steps that they are trained with.
struct Recipe {
  std::string images;            // a recipe of ./paperlab data
  std::int64_t test_images = 0;  // held out by a permutation; 0: the published test split
  double half_pixel = 0;         // pixels p are read as p / half_pixel - 1
  std::int64_t patch = 0;
  std::int64_t d_model = 0;
  std::int64_t num_layers = 0;
  std::int64_t num_heads = 0;
  std::int64_t ffn = 0;
  std::int64_t epochs = 0;
  std::int64_t batch_size = 0;
  double learning_rate = 0;
  std::int64_t eval_every = 0;  // steps

  void fields(auto&& visit, const std::string& prefix) {
    const auto add = [&](const char* name, auto& value) { visit((prefix + name).c_str(), value); };
    add("images", images);
    add("test_images", test_images);
    add("half_pixel", half_pixel);
    add("patch", patch);
    add("d_model", d_model);
    add("num_layers", num_layers);
    add("num_heads", num_heads);
    add("ffn", ffn);
    add("epochs", epochs);
    add("batch_size", batch_size);
    add("learning_rate", learning_rate);
    add("eval_every", eval_every);
  }
};

struct Config {
  std::string device = "cpu";
  std::string dtype = "float32";
  std::vector<std::uint64_t> seeds = {1, 2, 3};
  std::uint64_t split_seed = 0;
  std::int64_t curve_steps = 100;  // of the row "curve"
  std::int64_t moved_steps = 300;  // that the twin with moved weights is trained for
  std::int64_t first_steps = 25;   // in which both sides differ by rounding alone
  std::int64_t record_every = 20;  // steps whose mean loss is one point of a curve
  double weight_decay = 0.05;      // not of biases, norms, class token and positions
  double beta1 = 0.9;
  double beta2 = 0.999;
  double clip_norm = 1.0;
  double warmup_share = 0.06;
  double final_rate = 0.0;  // of the cosine, as a part of the highest rate
  Recipe digits{"digits", 397, 8.0, 4, 48, 3, 3, 96, 60, 64, 2e-3, 210};
  Recipe fashion{"fashion-mnist", 0, 127.5, 7, 64, 4, 4, 128, 3, 100, 2e-3, 300};

  void fields(auto&& visit) {
    visit("device", device);
    visit("dtype", dtype);
    visit("seeds", seeds);
    visit("split_seed", split_seed);
    visit("curve_steps", curve_steps);
    visit("moved_steps", moved_steps);
    visit("first_steps", first_steps);
    visit("record_every", record_every);
    visit("weight_decay", weight_decay);
    visit("beta1", beta1);
    visit("beta2", beta2);
    visit("clip_norm", clip_norm);
    visit("warmup_share", warmup_share);
    visit("final_rate", final_rate);
    digits.fields(visit, "digits_");
    fashion.fields(visit, "fashion_");
  }

  // Throws ValueError, and UnsupportedError if the device is not there.
  void validate() const;
};

// One training: what transformers is asked for, and we do after it.
struct Job {
  const Recipe* recipe = nullptr;
  std::string name;  // such as "digits seed 1"
  std::string dtype;
  std::uint64_t seed = 0;
  std::int64_t max_steps = 0;  // 0: all of the epochs
};

// The jobs of a row, one a seed.
std::vector<Job> jobs_of(const Config& config, const Recipe& recipe, const std::string& name);

// The first steps of digits in float64, first seed.
Job curve_job(const Config& config);

// What transformers is to make for a job.
Product product_of(const Config& config, const Job& job);

// `folders`: of the pictures, then of each job's product.
using Folders = std::vector<std::string>;

// The curve in float64 and the same function of trained weights.
void curve(const Config& config, Run& run, const Folders& folders);

// Losses, logits and accuracy of both sides after the same training: C2 for digits, C3 and C4 for
// Fashion-MNIST.
void paired(const Config& config, Run& run, const Recipe& recipe, const std::string& name,
            const Folders& folders);

}  // namespace paperlab::experiments::vision
