#pragma once
// The rows of the experiments with core-context-aware attention, and what they share.

#include <cstdint>
#include <string>
#include <vector>

#include "experiments/common/run.h"

namespace paperlab::experiments::cca {

struct Config {
  // Of the pages that the real model reads.
  std::string corpus = "manual-pages";
  std::vector<std::string> domains = {"en"};
  // Of the model of bytes: names of texts (experiments/common/run.h), no domain twice.
  std::vector<std::string> text_corpora = {"manual-pages:en,de,fr,ru", "code:c,python"};
  std::string model = "smollm2";  // of `./paperlab fetch`
  std::string device = "cpu";
  std::string dtype = "float32";  // or "float64": of models that are trained or measured
  // Seconds that a training step is taken for, or longer if one was: tasks run one by one, within
  // --limit. 0: side by side, on the CPU.
  double step_s = 0.0;
  // Group size g and window s of the paper, and of the cache's curve.
  std::int64_t group_size = 16;
  std::int64_t window = 1024;
  std::vector<std::int64_t> cache_lengths = {4096, 8192, 16384, 32768, 65536, 131072};
  // Typed needles: models of width 64 that find them, see recall.h.
  std::vector<std::uint64_t> recall_seeds = {1};
  std::int64_t recall_steps = 150;
  std::vector<std::int64_t> recall_tune_steps = {100, 200};
  std::int64_t recall_batch = 32;
  std::int64_t recall_width = 64;
  std::int64_t recall_length = 64;
  std::int64_t recall_window = 16;
  std::vector<std::int64_t> recall_groups = {4, 8, 16};
  std::vector<std::int64_t> recall_lengths = {64, 128, 256};
  std::int64_t recall_sequences = 384;  // of a measurement
  // A model of bytes: full attention, then others.
  std::vector<std::uint64_t> text_seeds = {1};
  std::int64_t text_layers = 4;
  std::int64_t text_width = 128;
  std::int64_t text_heads = 4;
  std::int64_t text_length = 1024;
  std::int64_t text_batch = 4;
  std::int64_t text_steps = 5600;
  std::int64_t text_tune_steps = 700;
  double text_rate = 2e-3;
  double text_tune_rate = 1e-3;
  std::int64_t text_group = 8;
  std::int64_t text_window = 128;
  std::vector<std::int64_t> text_buckets = {0, 128, 512, 1024};  // ends of the buckets
  std::vector<std::int64_t> text_grid_groups = {4, 8, 16, 32};
  std::vector<std::int64_t> text_grid_windows = {64, 128};
  std::int64_t text_windows = 256;  // held out
  std::int64_t text_contexts = 64;  // whose last token's attention is looked at
  // A real model on manual pages.
  std::int64_t pages = 2;
  std::int64_t page_length = 2048;
  std::vector<std::int64_t> page_buckets = {0, 128, 512, 1024, 2048};
  std::int64_t page_window = 128;
  std::vector<std::int64_t> page_groups = {16, 4};
  std::int64_t long_pages = 2;
  std::int64_t long_length = 8192;
  std::vector<std::int64_t> long_buckets = {0, 512, 2048, 4096, 8192};
  std::int64_t page_tune_steps = 100;
  std::int64_t page_tune_length = 512;
  std::int64_t page_tune_group = 8;
  std::int64_t page_tune_window = 64;
  double page_tune_rate = 1e-4;
  // Speed on a device: LLaMA2-7B's shapes.
  std::string speed_dtype = "float32";
  std::vector<std::int64_t> speed_lengths = {4096, 32768, 65536, 131072};
  std::int64_t speed_heads = 32;
  std::int64_t speed_head_dim = 128;
  std::int64_t speed_layers = 32;
  std::int64_t speed_ffn = 11008;
  std::int64_t speed_vocab = 32000;
  std::int64_t speed_tokens = 60;  // decoded after the prompt
  std::int64_t speed_repetitions = 5;
  double speed_part_s = 60.0;  // that a length and a method may take, see --limit

  void fields(auto&& visit) {
    visit("corpus", corpus);
    visit("domains", domains);
    visit("text_corpora", text_corpora);
    visit("model", model);
    visit("device", device);
    visit("dtype", dtype);
    visit("step_s", step_s);
    visit("group_size", group_size);
    visit("window", window);
    visit("cache_lengths", cache_lengths);
    visit("recall_seeds", recall_seeds);
    visit("recall_steps", recall_steps);
    visit("recall_tune_steps", recall_tune_steps);
    visit("recall_batch", recall_batch);
    visit("recall_width", recall_width);
    visit("recall_length", recall_length);
    visit("recall_window", recall_window);
    visit("recall_groups", recall_groups);
    visit("recall_lengths", recall_lengths);
    visit("recall_sequences", recall_sequences);
    visit("text_seeds", text_seeds);
    visit("text_layers", text_layers);
    visit("text_width", text_width);
    visit("text_heads", text_heads);
    visit("text_length", text_length);
    visit("text_batch", text_batch);
    visit("text_steps", text_steps);
    visit("text_tune_steps", text_tune_steps);
    visit("text_rate", text_rate);
    visit("text_tune_rate", text_tune_rate);
    visit("text_group", text_group);
    visit("text_window", text_window);
    visit("text_buckets", text_buckets);
    visit("text_grid_groups", text_grid_groups);
    visit("text_grid_windows", text_grid_windows);
    visit("text_windows", text_windows);
    visit("text_contexts", text_contexts);
    visit("pages", pages);
    visit("page_length", page_length);
    visit("page_buckets", page_buckets);
    visit("page_window", page_window);
    visit("page_groups", page_groups);
    visit("long_pages", long_pages);
    visit("long_length", long_length);
    visit("long_buckets", long_buckets);
    visit("page_tune_steps", page_tune_steps);
    visit("page_tune_length", page_tune_length);
    visit("page_tune_group", page_tune_group);
    visit("page_tune_window", page_tune_window);
    visit("page_tune_rate", page_tune_rate);
    visit("speed_dtype", speed_dtype);
    visit("speed_lengths", speed_lengths);
    visit("speed_heads", speed_heads);
    visit("speed_head_dim", speed_head_dim);
    visit("speed_layers", speed_layers);
    visit("speed_ffn", speed_ffn);
    visit("speed_vocab", speed_vocab);
    visit("speed_tokens", speed_tokens);
    visit("speed_repetitions", speed_repetitions);
    visit("speed_part_s", speed_part_s);
  }

  // Throws ValueError, and UnsupportedError if the device is not there.
  void validate() const;
};

// The paper's numbers and arithmetic on them.
void long_bench(Run& run);
void exact_match(Run& run);
void efficiency(Run& run);
void flop_bounds(Run& run);
void published_flexibility(Run& run);

// Structure: no training.
void kv_cache(const Config& config, Run& run);
void partition(const Config& config, Run& run);

// Trained models.
void recall(const Config& config, Run& run);
void text_model(const Config& config, Run& run, const std::vector<std::string>& tokens);
// A fetched model; `tokens` is the folder of its tokens of the text.
void pages(const Config& config, Run& run, const std::string& tokens);
void tuned_pages(const Config& config, Run& run, const std::string& tokens);

// Untrained, on the device.
void prefill_speed(const Config& config, Run& run);
void decoder_speed(const Config& config, Run& run);

}  // namespace paperlab::experiments::cca
