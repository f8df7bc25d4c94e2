// What is checked and what transformers is asked for.
#include <string>
#include <utility>

#include "experiments/vision/rows.h"
#include "paperlab/core/error.h"
#include "paperlab/ops/device.h"

namespace paperlab::experiments::vision {
namespace {

void check(bool holds, const std::string& required, const std::string& got) {
  require<ValueError>(holds, "vision", required, got);
}

void check_recipe(const Recipe& recipe, const std::string& prefix) {
  for (const auto& [name, value] :
       {std::pair("patch", recipe.patch), std::pair("d_model", recipe.d_model),
        std::pair("num_layers", recipe.num_layers), std::pair("num_heads", recipe.num_heads),
        std::pair("ffn", recipe.ffn), std::pair("epochs", recipe.epochs),
        std::pair("batch_size", recipe.batch_size), std::pair("eval_every", recipe.eval_every)}) {
    check(value >= 1, prefix + name + " must be >= 1", std::to_string(value));
  }
  check(recipe.test_images >= 0, prefix + "test_images must be >= 0",
        std::to_string(recipe.test_images));
  check(recipe.half_pixel > 0, prefix + "half_pixel must be > 0",
        std::to_string(recipe.half_pixel));
  check(recipe.learning_rate > 0, prefix + "learning_rate must be > 0",
        std::to_string(recipe.learning_rate));
  check(recipe.d_model % recipe.num_heads == 0, prefix + "d_model must be a multiple of its heads",
        std::to_string(recipe.d_model));
}

}  // namespace

void Config::validate() const {
  check(device == "cpu" || device == "cuda", "device must be cpu or cuda", device);
  check(dtype == "float32" || dtype == "float64", "dtype must be float32 or float64", dtype);
  check(!seeds.empty(), "seeds must be one at least", "none");
  for (const std::uint64_t seed : seeds) {
    check(seed < (std::uint64_t{1} << 32U), "seeds must be below 2^32", std::to_string(seed));
  }
  check(split_seed < (std::uint64_t{1} << 32U), "split_seed must be below 2^32",
        std::to_string(split_seed));
  for (const auto& [name, value] :
       {std::pair("curve_steps", curve_steps), std::pair("moved_steps", moved_steps),
        std::pair("first_steps", first_steps), std::pair("record_every", record_every)}) {
    check(value >= 1, std::string(name) + " must be >= 1", std::to_string(value));
  }
  check(clip_norm > 0, "clip_norm must be > 0", std::to_string(clip_norm));
  check(warmup_share >= 0 && warmup_share < 1, "warmup_share must be in [0, 1)",
        std::to_string(warmup_share));
  check_recipe(digits, "digits_");
  check_recipe(fashion, "fashion_");
  ops::require_device(at::Device(device));
}

std::vector<Job> jobs_of(const Config& config, const Recipe& recipe, const std::string& name) {
  std::vector<Job> jobs;
  jobs.reserve(config.seeds.size());
  for (const std::uint64_t seed : config.seeds) {
    jobs.push_back({&recipe, name + " seed " + std::to_string(seed), config.dtype, seed, 0});
  }
  return jobs;
}

Job curve_job(const Config& config) {
  return {&config.digits, "float64 curve", "float64", config.seeds.front(), config.curve_steps};
}

Product product_of(const Config& config, const Job& job) {
  const Recipe& recipe = *job.recipe;
  Json request = {{"images", recipe.images},
                  {"test_images", recipe.test_images},
                  {"half_pixel", recipe.half_pixel},
                  {"patch", recipe.patch},
                  {"d_model", recipe.d_model},
                  {"num_layers", recipe.num_layers},
                  {"num_heads", recipe.num_heads},
                  {"ffn", recipe.ffn},
                  {"epochs", recipe.epochs},
                  {"batch_size", recipe.batch_size},
                  {"learning_rate", recipe.learning_rate},
                  {"eval_every", recipe.eval_every},
                  {"device", config.device},
                  {"dtype", job.dtype},
                  {"seed", job.seed},
                  {"split_seed", config.split_seed},
                  {"max_steps", job.max_steps},
                  {"moved_steps", config.moved_steps},
                  {"weight_decay", config.weight_decay},
                  {"beta1", config.beta1},
                  {"beta2", config.beta2},
                  {"clip_norm", config.clip_norm},
                  {"warmup_share", config.warmup_share},
                  {"final_rate", config.final_rate}};
  return {"transformers/" + job.name, "transformers_vit.py", std::move(request)};
}

}  // namespace paperlab::experiments::vision
