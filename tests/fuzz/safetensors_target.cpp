#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/io/checkpoint.h"
#include "paperlab/io/safetensors_internal.h"
#include "tests/fuzz/targets.h"

namespace paperlab::io {
namespace {

void must(bool holds) {
  if (!holds) {
    std::abort();
  }
}

// Each byte behind the header belongs to exactly one tensor.
void check_cover(const SafetensorsHeader& header, std::uint64_t file_bytes) {
  std::uint64_t sum = 0;
  for (const TensorEntry& tensor : header.tensors) {
    must(tensor.offset <= file_bytes && tensor.num_bytes <= file_bytes - tensor.offset);
    must(tensor_bytes(tensor.type, tensor.shape) == tensor.num_bytes);
    sum += tensor.num_bytes;
  }
  must(sum <= file_bytes);
  must(header.tensors.empty() || header.tensors.front().offset == file_bytes - sum);
}

// What the writer makes of these tensors is read as the same tensors.
void check_round_trip(const SafetensorsHeader& header) {
  std::vector<TensorSpec> specs;
  specs.reserve(header.tensors.size());
  for (const TensorEntry& tensor : header.tensors) {
    specs.push_back({tensor.name, tensor.type, tensor.shape});
  }
  const Layout layout = lay_out("out", std::move(specs), header.metadata);
  must(layout.header.size() % 8 == 0);
  const SafetensorsHeader again =
      parse_safetensors_header("again", layout.header, layout.file_bytes);
  must(again.metadata == header.metadata);
  must(again.tensors.size() == header.tensors.size());
  auto sorted = [](std::vector<TensorEntry> tensors) {
    std::sort(tensors.begin(), tensors.end(),
              [](const TensorEntry& a, const TensorEntry& b) { return a.name < b.name; });
    return tensors;
  };
  const std::vector<TensorEntry> before = sorted(header.tensors);
  const std::vector<TensorEntry> after = sorted(again.tensors);
  for (std::size_t i = 0; i < before.size(); ++i) {
    must(before[i].name == after[i].name && before[i].type == after[i].type);
    must(before[i].shape == after[i].shape && before[i].num_bytes == after[i].num_bytes);
  }
}

}  // namespace

void fuzz_safetensors(const std::uint8_t* data, std::size_t num_bytes) {
  const std::string_view file(reinterpret_cast<const char*>(data), num_bytes);
  try {
    if (file.starts_with('{')) {
      for (const auto& [tensor, name] : parse_shard_index("fuzz", file)) {
        must(name.find('/') == std::string::npos && name != ".." && !name.empty());
      }
      return;
    }
    const SafetensorsHeader header = parse_safetensors_header("fuzz", file, num_bytes);
    check_cover(header, num_bytes);
    check_round_trip(header);
  } catch (const ValueError&) {
    return;  // the one way to refuse; anything else ends the program
  }
}

}  // namespace paperlab::io
