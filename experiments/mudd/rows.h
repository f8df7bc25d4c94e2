#pragma once
// The rows of the MUDDFormer experiments and what they share.

#include <cstdint>
#include <string>
#include <vector>

#include "experiments/common/run.h"

namespace paperlab::experiments::mudd {

struct Config {
  std::string corpus = "manual-pages";
  std::vector<std::string> domains = {"en"};
  std::string device = "cpu";
  std::string dtype =
      "float32";  // of parameters; "bfloat16": parameters float32, products bfloat16
  std::int64_t num_layers = 8;
  std::int64_t d_model = 64;
  std::int64_t num_heads = 4;
  std::int64_t ffn_multiple = 8;  // FFN widths are 8/3 of d_model, rounded to it
  std::int64_t seq_len = 64;
  std::int64_t batch_size = 16;
  std::int64_t num_steps = 300;
  std::int64_t record_every = 10;  // steps whose mean loss is one point of a curve
  double warmup_share = 0.05;
  double final_rate = 0.1;    // of the cosine, as a part of the highest rate
  double weight_decay = 0.1;  // of tensors of rank 2 and more
  double clip_norm = 1.0;
  double init_std = 0.02;
  double embedding_std = 0.25;
  double control_embedding_std = 0.02;
  double control_rate = 3e-3;
  std::vector<double> learning_rates = {1.5e-3, 3e-3, 6e-3, 1.2e-2};
  std::vector<std::uint64_t> sweep_seeds = {0, 4};  // the best rate is that of their mean loss
  std::vector<std::uint64_t> seeds = {1, 2, 3};
  std::int64_t validation_windows = 512;
  std::int64_t analysed_windows = 0;  // for Figs. 6, 8, 12 and 13; 0: all of validation
  std::vector<double> control_embedding_stds = {0.006, 0.02};  // of the gpu preset's control
  std::vector<std::int64_t> fig3_layers = {4, 6, 8};
  std::vector<std::int64_t> fig3_widths = {48, 56, 64};
  std::vector<std::int64_t> fig4_layers = {8, 32};
  std::vector<std::int64_t> fig4_widths = {64, 32};
  double fig3_bytes_per_parameter = 0.0;  // 0: num_steps at each size
  std::int64_t fig9_window = 2;
  // Vision transformers of Table 9 on pictures; rates and seeds of sweeps as above.
  std::string pictures = "digits";
  double vit_half_pixel = 8.0;  // pixels of 0 to twice this become -1 to 1
  std::int64_t vit_layers = 6;
  std::int64_t vit_width = 32;
  std::int64_t vit_heads = 4;
  std::int64_t vit_ffn = 128;
  std::int64_t vit_patch = 2;
  std::int64_t vit_epochs = 30;
  std::int64_t vit_batch_size = 64;
  double vit_warmup_share = 0.1;
  double vit_weight_decay = 0.3;  // of tensors of rank 2 and more
  std::vector<std::uint64_t> vit_seeds = {21, 22, 23, 24, 25};
  double run_seconds = 0.0;  // > 0: runs are made one by one and take so long, see --limit
  // Shapes of Table 4, one after another, untrained.
  std::vector<std::int64_t> speed_layers = {24, 32, 32};
  std::vector<std::int64_t> speed_widths = {2048, 2560, 4096};
  std::vector<std::int64_t> speed_heads = {16, 32, 32};
  std::vector<std::int64_t> speed_ffns = {5504, 6912, 11008};
  std::int64_t speed_ffn_round = 128;  // of re-allocated widths
  std::int64_t speed_vocab = 50432;
  std::int64_t speed_context = 2048;  // of training
  std::int64_t speed_batch = 16;      // sequences, or half of them until they fit
  std::int64_t speed_prompt = 4096;   // of decoding
  std::int64_t speed_tokens = 128;
  std::int64_t speed_repetitions = 3;

  void fields(auto&& visit) {
    visit("corpus", corpus);
    visit("domains", domains);
    visit("device", device);
    visit("dtype", dtype);
    visit("num_layers", num_layers);
    visit("d_model", d_model);
    visit("num_heads", num_heads);
    visit("ffn_multiple", ffn_multiple);
    visit("seq_len", seq_len);
    visit("batch_size", batch_size);
    visit("num_steps", num_steps);
    visit("record_every", record_every);
    visit("warmup_share", warmup_share);
    visit("final_rate", final_rate);
    visit("weight_decay", weight_decay);
    visit("clip_norm", clip_norm);
    visit("init_std", init_std);
    visit("embedding_std", embedding_std);
    visit("control_embedding_std", control_embedding_std);
    visit("control_rate", control_rate);
    visit("learning_rates", learning_rates);
    visit("sweep_seeds", sweep_seeds);
    visit("seeds", seeds);
    visit("validation_windows", validation_windows);
    visit("analysed_windows", analysed_windows);
    visit("control_embedding_stds", control_embedding_stds);
    visit("fig3_layers", fig3_layers);
    visit("fig3_widths", fig3_widths);
    visit("fig4_layers", fig4_layers);
    visit("fig4_widths", fig4_widths);
    visit("fig3_bytes_per_parameter", fig3_bytes_per_parameter);
    visit("fig9_window", fig9_window);
    visit("pictures", pictures);
    visit("vit_half_pixel", vit_half_pixel);
    visit("vit_layers", vit_layers);
    visit("vit_width", vit_width);
    visit("vit_heads", vit_heads);
    visit("vit_ffn", vit_ffn);
    visit("vit_patch", vit_patch);
    visit("vit_epochs", vit_epochs);
    visit("vit_batch_size", vit_batch_size);
    visit("vit_warmup_share", vit_warmup_share);
    visit("vit_weight_decay", vit_weight_decay);
    visit("vit_seeds", vit_seeds);
    visit("run_seconds", run_seconds);
    visit("speed_layers", speed_layers);
    visit("speed_widths", speed_widths);
    visit("speed_heads", speed_heads);
    visit("speed_ffns", speed_ffns);
    visit("speed_ffn_round", speed_ffn_round);
    visit("speed_vocab", speed_vocab);
    visit("speed_context", speed_context);
    visit("speed_batch", speed_batch);
    visit("speed_prompt", speed_prompt);
    visit("speed_tokens", speed_tokens);
    visit("speed_repetitions", speed_repetitions);
  }

  // Throws ValueError, and UnsupportedError if the device is not there.
  void validate() const;
};

// Arithmetic on published numbers.
void table1(Run& run);
void table3(Run& run);
void published_table5(Run& run);
void published_table9(Run& run);

// Structure: no training.
void snapshot_trap(Run& run);
void table6(const Config& config, Run& run);
void traffic(Run& run);

// Trained models; `tokens` is the folder of the text.
void table5_core(const Config& config, Run& run, const std::string& tokens);
void ddformer(const Config& config, Run& run, const std::string& tokens);
void embedding_control(const Config& config, Run& run, const std::string& tokens);
void table5_rest(const Config& config, Run& run, const std::string& tokens);
void figure3(const Config& config, Run& run, const std::string& tokens);
void figure4(const Config& config, Run& run, const std::string& tokens);
void figure6(const Config& config, Run& run, const std::string& tokens);
void figure8(const Config& config, Run& run, const std::string& tokens);
void figure9(const Config& config, Run& run, const std::string& tokens);

// Of pictures; `images` is their folder.
void table9(const Config& config, Run& run, const std::string& images);

// The same at the size of a GPU, with criteria of their own.
void table5_gpu(const Config& config, Run& run, const std::string& tokens);
void figure3_gpu(const Config& config, Run& run, const std::string& tokens);
void figure4_gpu(const Config& config, Run& run, const std::string& tokens);
void figure6_gpu(const Config& config, Run& run, const std::string& tokens);
void figure5_gpu(const Config& config, Run& run, const std::string& tokens);
void figure9_gpu(const Config& config, Run& run, const std::string& tokens);
void embedding_gpu(const Config& config, Run& run, const std::string& tokens);

// Speed and memory of untrained models at the paper's shapes.
void table4_decoding(const Config& config, Run& run);
void table4_training(const Config& config, Run& run);
void table7(const Config& config, Run& run);
void figure9_speed(const Config& config, Run& run);

}  // namespace paperlab::experiments::mudd
