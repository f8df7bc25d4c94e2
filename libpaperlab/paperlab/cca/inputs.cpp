#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include "paperlab/cca/inputs_internal.h"
#include "paperlab/ops/kernel_dtype_internal.h"

namespace paperlab::cca {
namespace {

constexpr std::int64_t kMaxHeadDim = 256;
constexpr std::int64_t kMaxCount = std::int64_t{1} << 60;

// Nothing else may be asked of a tensor before this.
void check_is_plain(const char* function, const char* name, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.defined(), function, ": ", name, " must be a tensor, got none");
  TORCH_CHECK_VALUE(!x.is_nested(), function, ": ", name, " must be strided, got a nested tensor");
  TORCH_CHECK_VALUE(x.layout() == at::kStrided, function, ": ", name,
                    " must be strided, got layout ", x.layout());
}

void check_query(const char* function, const at::Tensor& query) {
  check_is_plain(function, "q", query);
  ops::check_kernel_dtype(function, "q", query);
  const bool is_query =
      query.dim() == 4 && query.sym_size(3) >= 1 && query.sym_size(3) <= kMaxHeadDim;
  TORCH_CHECK_VALUE(is_query, function, ": q must be [B, H, T, D] with D in 1..", kMaxHeadDim,
                    ", got ", query.sym_sizes());
}

void check_is_like(const char* function, const char* name, const at::Tensor& x,
                   const at::Tensor& query) {
  check_is_plain(function, name, x);
  TORCH_CHECK_TYPE(x.scalar_type() == query.scalar_type(), function, ": ", name,
                   " must be of the dtype of q (", query.scalar_type(), "), got ", x.scalar_type());
  TORCH_CHECK_VALUE(x.device() == query.device(), function, ": ", name,
                    " must be on the device of q (", query.device(), "), got ", x.device());
}

}  // namespace

void check_query_and_key(const char* function, const at::Tensor& query, const at::Tensor& key) {
  check_query(function, query);
  check_is_like(function, "k", key, query);
  const c10::SymIntArrayRef sizes = query.sym_sizes();
  const bool is_key = key.dim() == 4 && key.sym_size(0) == sizes[0] &&
                      key.sym_size(2) == sizes[2] && key.sym_size(3) == sizes[3];
  TORCH_CHECK_VALUE(is_key, function, ": k must be [", sizes[0], ", G, ", sizes[2], ", ", sizes[3],
                    "], got ", key.sym_sizes());
  const c10::SymInt heads = key.sym_size(1);
  const bool divides = heads == 0 ? sizes[1] == 0 : sizes[1] % heads == 0;
  TORCH_CHECK_VALUE(divides, function, ": k must be [B, G, T, D] with G a divisor of q's ",
                    sizes[1], " heads, got ", key.sym_sizes());
}

void check_inputs(const char* function, const at::Tensor& query, const at::Tensor& key,
                  const at::Tensor& value) {
  check_query_and_key(function, query, key);
  check_is_like(function, "v", value, query);
  TORCH_CHECK_VALUE(value.sym_sizes() == key.sym_sizes(), function,
                    ": v must be of the shape of k ", key.sym_sizes(), ", got ", value.sym_sizes());
}

bool is_autocast_on(const at::Tensor& x) {
  if (!x.defined() || !(x.is_cpu() || x.is_cuda())) {
    return false;
  }
  const c10::DeviceType device = x.device().type();
  return at::autocast::is_autocast_enabled(device) &&
         !c10::impl::tls_is_dispatch_key_excluded(
             at::autocast::get_autocast_dispatch_key_from_device_type(device));
}

at::Tensor lowered(const at::Tensor& x) {
  if (!is_autocast_on(x)) {
    return x;
  }
  const c10::DeviceType device = x.device().type();
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), x, device);
}

void check_memory(const char* function, const char* argument, at::IntArrayRef sizes,
                  const at::TensorOptions& options) {
  bool fits = true;
  try {
    const at::Tensor memory = at::empty(sizes, options);
  } catch (const c10::Error&) {  // the allocators' own type
    fits = false;
  }
  TORCH_CHECK_VALUE(fits, function, ": ", argument, " must give a result that memory holds, got ",
                    sizes, " of ", options.dtype());
}

void check_options(const char* function, const Options& options) {
  const std::string problem = problem_of(options);
  TORCH_CHECK_VALUE(problem.empty(), function, ": ", problem);
}

void check_count(const char* function, const char* name, std::int64_t value, std::int64_t low) {
  TORCH_CHECK_VALUE(value >= low && value <= kMaxCount, function, ": ", name, " must be in ", low,
                    "..", kMaxCount, ", got ", value);
}

std::string_view kind_of(Pooling pooling) {
  switch (pooling) {
    case Pooling::kMean:
      return "mean";
    case Pooling::kMax:
      return "max";
    case Pooling::kAttention:
      break;
  }
  return "attention";
}

at::Tensor repeated_heads(const at::Tensor& x, const c10::SymInt& heads) {
  if (x.sym_size(1) == heads) {
    return x;
  }
  const c10::SymInt times = heads / x.sym_size(1);
  return x.unsqueeze(2)
      .expand_symint({x.sym_size(0), x.sym_size(1), times, x.sym_size(2), x.sym_size(3)})
      .reshape_symint({x.sym_size(0), heads, x.sym_size(2), x.sym_size(3)});
}

}  // namespace paperlab::cca
