#pragma once
// What reading, scanning and writing of weights share.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "paperlab/io/element_type.h"

namespace paperlab::nn {

/// A type of weights: its name in config.json, in LibTorch and in files.
struct NamedType {
  const char* name;
  at::ScalarType scalar;
  io::ElementType element;
};

/// The type, or null if weights are not of it.
const NamedType* find_type(at::ScalarType type);

/// All names, for messages.
const char* type_names();

/// Where the first NaN is: which tensor, and its index there.
struct NanPlace {
  std::size_t tensor = 0;
  std::vector<std::int64_t> index;
};

/// The first NaN of tensors of any strides, by order; types without NaN are skipped.
std::optional<NanPlace> find_nan(const std::vector<at::Tensor>& tensors);

}  // namespace paperlab::nn
