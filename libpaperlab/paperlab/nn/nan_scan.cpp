// Looks for NaN in the bits of weights: a sum would also be NaN for infinities of both signs.
#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "paperlab/io/safetensors.h"
#include "paperlab/nn/weights.h"
#include "paperlab/nn/weights_internal.h"
#include "paperlab/ops/parallel_bridge.h"

namespace paperlab::nn {
namespace {

constexpr std::int64_t kBlock = 1024;          // elements between two looks at the result
constexpr std::int64_t kPiece = 512 * kBlock;  // elements of a task
constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();

/// A part of a tensor, and where its first NaN is.
struct Piece {
  std::size_t tensor;
  std::int64_t begin;
  std::int64_t end;
  std::int64_t first = kNone;
};

// A number without its sign is above infinity exactly if it is NaN: the difference is negative.
template <class Bits>
bool has_nan(const Bits* x, std::int64_t count, Bits infinity) {
  constexpr Bits kMagnitude = std::numeric_limits<Bits>::max();
  Bits differences = 0;
  if (count == kBlock) {  // a known count becomes vector code
    for (std::int64_t i = 0; i < kBlock; ++i) {
      differences = static_cast<Bits>(differences | (infinity - (x[i] & kMagnitude)));
    }
  } else {
    for (std::int64_t i = 0; i < count; ++i) {
      differences = static_cast<Bits>(differences | (infinity - (x[i] & kMagnitude)));
    }
  }
  return differences < 0;
}

template <class Bits>
std::int64_t first_nan(const void* data, const Piece& piece, Bits infinity) {
  const auto* x = static_cast<const Bits*>(data);
  for (std::int64_t begin = piece.begin; begin < piece.end; begin += kBlock) {
    const std::int64_t count = std::min(kBlock, piece.end - begin);
    if (has_nan(x + begin, count, infinity)) {
      std::int64_t i = begin;
      while (!has_nan(x + i, 1, infinity)) {
        ++i;
      }
      return i;
    }
  }
  return kNone;
}

std::int64_t first_nan(const at::Tensor& x, const Piece& piece) {
  switch (x.scalar_type()) {
    case at::kDouble:
      return first_nan<std::int64_t>(x.const_data_ptr(), piece, 0x7ff0000000000000);
    case at::kFloat:
      return first_nan<std::int32_t>(x.const_data_ptr(), piece, 0x7f800000);
    case at::kBFloat16:
      return first_nan<std::int16_t>(x.const_data_ptr(), piece, 0x7f80);
    case at::kHalf:
      return first_nan<std::int16_t>(x.const_data_ptr(), piece, 0x7c00);
    default:
      return kNone;
  }
}

std::vector<std::int64_t> index_of(std::int64_t flat, at::IntArrayRef sizes) {
  std::vector<std::int64_t> index(sizes.size());
  for (std::size_t d = sizes.size(); d-- > 0;) {
    index[d] = flat % sizes[d];
    flat /= sizes[d];
  }
  return index;
}

}  // namespace

std::optional<NanPlace> find_nan(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> dense;
  std::vector<Piece> pieces;
  for (const at::Tensor& tensor : tensors) {
    dense.push_back(tensor.detach().cpu().contiguous());
    for (std::int64_t begin = 0; begin < tensor.numel(); begin += kPiece) {
      pieces.push_back({dense.size() - 1, begin, std::min(begin + kPiece, tensor.numel())});
    }
  }
  parallel_for(ops::torch_executor(), static_cast<std::int64_t>(pieces.size()),
               [&](std::int64_t i, int) {
                 Piece& piece = pieces[static_cast<std::size_t>(i)];
                 piece.first = first_nan(dense[piece.tensor], piece);
               });
  for (const Piece& piece : pieces) {
    if (piece.first != kNone) {
      return NanPlace{piece.tensor, index_of(piece.first, tensors[piece.tensor].sizes())};
    }
  }
  return std::nullopt;
}

void check_no_nan(const std::string& source, const NamedTensors& tensors) {
  std::vector<at::Tensor> list;
  for (const auto& [name, tensor] : tensors) {
    list.push_back(tensor);
  }
  if (const std::optional<NanPlace> place = find_nan(list)) {
    std::string index;
    for (const std::int64_t i : place->index) {
      index += (index.empty() ? "" : ", ") + std::to_string(i);
    }
    throw ValueError(source + ": tensor " + io::quoted_name(tensors[place->tensor].first) +
                     " holds NaN at index [" + index + ']');
  }
}

}  // namespace paperlab::nn
