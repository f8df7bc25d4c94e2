#pragma once
/// \file
/// The config.json of the released models: MUDDFormer and MUDDPythia.
///
/// | key | option |
/// |---|---|
/// | `model_type` | `muddformer`; `muddpythia`: parallel_block |
/// | `vocab_size`, `n_layer`, `dim`, `n_head`, `intermediate_size` | sizes |
/// | `block_size` | max_positions |
/// | `n_local_heads` | num_kv_heads; -1: as many as heads |
/// | `head_dim`, `norm_eps`, `rope_base`, `use_qk_norm`, `rotary_pct` | as they say |
/// | `use_parallel_residual`, `use_linear_bias` | of Pythia's block |
/// | `dense`, `dynamic_dense`, `dense_type` | variant and ways; `l` is one way |
/// | `sepln` | norms for Q, K and V: with several ways, and only then |
/// | `expand_last`, `round64` | last_hidden_expand 4 or 1; hidden_round 64 or 0 |
/// | `tie_word_embeddings`, `bos_token_id`, `eos_token_id`, `pad_token_id` | as they say |
/// | `stack_hidden`, `use_layer_cache` | none: where the released code keeps its states |
/// | `is_training`, `use_gradient_checkpointing` | none |
///
/// A model that was read is written with its own config.json, those without an option included; a
/// new one has the released values of these.
///
/// FFN widths are re-allocated, whatever the keys say. What these keys cannot say has keys of our
/// own, which stand there only if needed: `paperlab_` and the option's name.

#include <optional>
#include <string>
#include <string_view>

#include "paperlab/core/export.h"
#include "paperlab/core/json.h"
#include "paperlab/mudd/config.h"

namespace paperlab::mudd {

struct PublishedModel {
  MuddConfig config{};
  std::optional<std::string> dtype{};  ///< `torch_dtype`: only counts where stored types differ.
};

/// Returns the model that a config.json describes. Absent keys have the defaults of the released
/// code, for MUDDPythia the values of the released models; `intermediate_size` is then
/// 8/3 dim, rounded up to a multiple of 256, or 4 dim.
/// \param source  the file's name, for messages.
/// \throws ValueError  "SOURCE: ..." naming the setting, if one has a wrong type or value, or would
///                     change the numbers and is not known; or if it is no object.
PAPERLAB_API PublishedModel read_published_config(const std::string& source, const Json& config);

/// Returns the config.json of a model: the keys of the released files, and our own where needed.
/// read_published_config() of it describes the same model.
/// \param dtype  `torch_dtype`
/// \throws ValueError  as check().
PAPERLAB_API Json published_config(const MuddConfig& config, const std::string& dtype = "float32");

/// Whether this is the name of a cache that the released code stores with the parameters.
PAPERLAB_API bool is_published_buffer(std::string_view name);

}  // namespace paperlab::mudd
