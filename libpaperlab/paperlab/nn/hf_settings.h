#pragma once
/// \file
/// Settings of a Hugging Face JSON file, read one by one: what was not asked for is not known.

#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>

#include "paperlab/core/export.h"
#include "paperlab/core/json.h"
#include "paperlab/nn/config.h"

namespace paperlab::nn {

// Least values of numbers.
constexpr double kAny = -std::numeric_limits<double>::infinity();
constexpr double kPositive = std::numeric_limits<double>::min();

constexpr std::int64_t kMaxSize = 0x7fffffff;  // of any count; products stay below 2^62

/// The settings of an object. Each function makes its key a known one; a null counts as absent only
/// where the function says so. Errors are ValueErrors "SOURCE: setting 'KEY' must be ..., got ...".
class PAPERLAB_API Settings {
 public:
  /// Refuses what is no object. `prefix` stands before keys in messages.
  Settings(std::string source, const Json& object, std::string prefix = "");

  const std::string& source() const { return source_; }

  /// The value, or null if the key is absent.
  const Json* find(const std::string& key);

  /// The value unless it is absent or null.
  const Json* find_value(const std::string& key);

  std::int64_t size(const std::string& key, std::int64_t absent, std::int64_t max = kMaxSize);
  std::optional<std::int64_t> optional_size(const std::string& key);  // nothing if absent or null
  double number(const std::string& key, double absent, double min);
  std::optional<double> optional_number(const std::string& key, double min);
  bool flag(const std::string& key, bool absent);
  std::string text(const std::string& key, const std::string& absent);

  /// The key may be there with this value, or null.
  void only(const std::string& key, const Json& value);

  /// These, separated by spaces, may be there with any value: they change no number.
  void allow(const std::string& keys);

  /// Refuses keys that are not known, unless they are null. `what` names the kind of file.
  void refuse_others(const std::string& what) const;

  [[noreturn]] void refuse(const std::string& key, const std::string& required) const;

 private:
  std::string source_;
  const Json& object_;
  std::string prefix_;
  std::set<std::string> read_;
  std::set<std::string> allowed_;
};

/// The value if it is an integer of at most 63 bits: comparisons of JSON values would wrap.
PAPERLAB_API std::optional<std::int64_t> integer(const Json& value);

/// The dtype's name under `dtype` or `torch_dtype`, without `torch.`.
PAPERLAB_API std::optional<std::string> read_hf_dtype(Settings& settings);

/// Allows what transformers may have in any config.json and no logit depends on: of the program,
/// of training, of other heads, of generation.
PAPERLAB_API void allow_hf_harmless(Settings& settings);

/// The activation that this key names.
PAPERLAB_API Activation read_hf_activation(Settings& settings, const char* key, const char* absent);

/// Where the files of a type have their rotary positions: by default as Llama.
struct RopeForm {
  const char* base_key = "rope_theta";  ///< On the file's own level.
  double base = 10000.0;                ///< Of files without it.
  const char* share_key = nullptr;      ///< Likewise, of the share of lanes that is rotated (NeoX).
  double share = 1.0;                   ///< Of files without it.
  const char* section = nullptr;        ///< The part of rope_parameters that counts (Gemma 3).
  bool has_scaling_key = true;          ///< Whether rope_scaling counts.
};

RopeConfig read_hf_rope(Settings& settings, const RopeForm& form, std::int64_t head_dim,
                        std::int64_t max_position_embeddings);

/// The longest sequence that a model with this RoPE serves.
std::int64_t stretched_positions(const Settings& settings, const RopeConfig& rope);

}  // namespace paperlab::nn
