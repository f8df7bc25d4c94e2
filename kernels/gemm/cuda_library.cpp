#include "kernels/gemm/cuda_library.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "kernels/common/cuda/check.cuh"
#include "paperlab/core/error.h"

namespace paperlab::kernels {
namespace {

constexpr char kFunction[] = "gemm_cuda";
// The functions in use have the same signatures and constants in both.
constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};

// --- the library -------------------------------------------------------------------------------

// What the process has already goes first: LibTorch's own.
void* open_library() {
  for (const int mode : {RTLD_NOW | RTLD_NOLOAD, RTLD_NOW}) {
    for (const char* name : kNames) {
      if (void* found = dlopen(name, mode); found != nullptr) {
        return found;
      }
    }
  }
  return nullptr;
}

class Library {
 public:
  static const Library& get() {
    static const Library library;
    require<UnsupportedError>(
        library.missing_.empty(), kFunction,
        "matrix products on a GPU need libcublasLt.so.13 or .12 on the loader's path",
        library.missing_);
    return library;
  }

  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtGetStatusString) status_string = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;

  void check(cublasStatus_t status, const char* call) const {
    if (status != CUBLAS_STATUS_SUCCESS) {
      throw CudaError(std::string(kFunction) + ": " + call + " must succeed, got " +
                      status_string(status) + " (" + std::to_string(status) + ")");
    }
  }

 private:
  Library() {
    library_ = open_library();
    if (library_ == nullptr) {
      const char* reason = dlerror();
      missing_ = reason == nullptr ? "none" : reason;
      return;
    }
    bind("cublasLtCreate", create);
    bind("cublasLtGetStatusString", status_string);
    bind("cublasLtMatmul", matmul);
    bind("cublasLtMatmulAlgoGetHeuristic", heuristic);
    bind("cublasLtMatmulDescCreate", desc_create);
    bind("cublasLtMatmulDescDestroy", desc_destroy);
    bind("cublasLtMatmulDescSetAttribute", desc_set);
    bind("cublasLtMatrixLayoutCreate", layout_create);
    bind("cublasLtMatrixLayoutDestroy", layout_destroy);
    bind("cublasLtMatmulPreferenceCreate", preference_create);
    bind("cublasLtMatmulPreferenceDestroy", preference_destroy);
    bind("cublasLtMatmulPreferenceSetAttribute", preference_set);
  }

  template <class Function>
  void bind(const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library_, name));
    if (function == nullptr) {
      missing_ += std::string(missing_.empty() ? "one without " : ", ") + name;
    }
  }

  void* library_ = nullptr;  // never closed: GPUs may still be at work when the process ends
  std::string missing_;
};

// --- a call as the library's objects -----------------------------------------------------------

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return CUDA_R_16BF;
    case DType::kFloat16:
      return CUDA_R_16F;
    case DType::kFloat64:
      return CUDA_R_64F;
    case DType::kFloat32:
      break;
  }
  return CUDA_R_32F;
}

template <class Object, class Destroy>
auto owned(Object* object, Destroy destroy) {
  return std::unique_ptr<Object, Destroy>(object, destroy);
}
template <class Handle, class Destroy>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy>;

using Layout = Owned<cublasLtMatrixLayout_t, decltype(&cublasLtMatrixLayoutDestroy)>;
using Description = Owned<cublasLtMatmulDesc_t, decltype(&cublasLtMatmulDescDestroy)>;

Layout layout(const Library& lt, const ColumnMajor& matrix) {
  cublasLtMatrixLayout_t made = nullptr;
  lt.check(lt.layout_create(&made, data_type(matrix.dtype), static_cast<std::uint64_t>(matrix.rows),
                            static_cast<std::uint64_t>(matrix.columns), matrix.ld),
           "cublasLtMatrixLayoutCreate");
  return owned(made, lt.layout_destroy);
}

template <class Value>
void set(const Library& lt, const Description& description,
         cublasLtMatmulDescAttributes_t attribute, const Value& value) {
  lt.check(
      lt.desc_set(description.get(), attribute, static_cast<const void*>(&value), sizeof(value)),
      "cublasLtMatmulDescSetAttribute");
}

Description description(const Library& lt, const LtCall& call) {
  const bool is_double = call.a.dtype == DType::kFloat64;
  cublasLtMatmulDesc_t made = nullptr;
  lt.check(lt.desc_create(&made, is_double ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                          is_double ? CUDA_R_64F : CUDA_R_32F),
           "cublasLtMatmulDescCreate");
  Description description = owned(made, lt.desc_destroy);
  const auto op = [](bool is_transposed) { return is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  set(lt, description, CUBLASLT_MATMUL_DESC_TRANSA, op(call.is_a_transposed));
  set(lt, description, CUBLASLT_MATMUL_DESC_TRANSB, op(call.is_b_transposed));
  const bool has_bias = call.bias != nullptr;
  set(lt, description, CUBLASLT_MATMUL_DESC_EPILOGUE,
      call.has_gelu ? (has_bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU)
                    : (has_bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT));
  if (has_bias) {
    set(lt, description, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(call.d.dtype));
    set(lt, description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, call.bias);  // each call sets its own
  }
  return description;
}

// What is kept of a call: everything but its addresses.
struct Prepared {
  Description description;
  Layout a;
  Layout b;
  Layout c;
  Layout d;
  cublasLtMatmulAlgo_t algorithm;
  bool has_algorithm;
};

// One algorithm, the library's first. Partial sums are added in float32 (float64): neither in the
// dtype of C, which would round them, nor in place.
bool choose(const Library& lt, cublasLtHandle_t handle, const LtCall& call, std::int64_t workspace,
            Prepared& prepared) {
  cublasLtMatmulPreference_t made = nullptr;
  lt.check(lt.preference_create(&made), "cublasLtMatmulPreferenceCreate");
  const auto preference = owned(made, lt.preference_destroy);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    lt.check(lt.preference_set(preference.get(), attribute, &value, sizeof(value)),
             "cublasLtMatmulPreferenceSetAttribute");
  };
  const auto aligned = [](const ColumnMajor& matrix) {
    return static_cast<std::uint32_t>(alignment_of(matrix.data));
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(workspace));
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, aligned(call.a));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, aligned(call.b));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, aligned(call.c));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, aligned(call.d));
  cublasLtMatmulHeuristicResult_t result = {};
  int count = 0;
  const cublasStatus_t status =
      lt.heuristic(handle, prepared.description.get(), prepared.a.get(), prepared.b.get(),
                   prepared.c.get(), prepared.d.get(), preference.get(), 1, &result, &count);
  const bool is_refused = status == CUBLAS_STATUS_NOT_SUPPORTED ||
                          status == CUBLAS_STATUS_INVALID_VALUE ||
                          status == CUBLAS_STATUS_ARCH_MISMATCH;
  if (is_refused || (status == CUBLAS_STATUS_SUCCESS && count == 0)) {
    return false;
  }
  lt.check(status, "cublasLtMatmulAlgoGetHeuristic");
  prepared.algorithm = result.algo;
  return result.state == CUBLAS_STATUS_SUCCESS;
}

// --- what the process keeps --------------------------------------------------------------------

// Descriptions are shared by all threads: a call holds the lock while it sets the bias and is
// enqueued.
class Calls {
 public:
  static Calls& get() {
    static auto* calls = new Calls;  // never destroyed, like the library
    return *calls;
  }

  std::unique_lock<std::mutex> lock() { return std::unique_lock(mutex_); }

  cublasLtHandle_t handle(const Library& lt, int device) {
    cublasLtHandle_t& handle = handles_[device];
    if (handle == nullptr) {
      lt.check(lt.create(&handle), "cublasLtCreate");
    }
    return handle;
  }

  Prepared& prepared(const Library& lt, cublasLtHandle_t handle, int device, const LtCall& call,
                     std::int64_t workspace) {
    const LtKey key = key_of(call, device, workspace);
    const auto found = prepared_.find(key);
    if (found != prepared_.end()) {
      return found->second;
    }
    if (prepared_.size() >= kMostCalls) {
      prepared_.clear();  // the same question has the same answer
    }
    Prepared made = {description(lt, call),
                     layout(lt, call.a),
                     layout(lt, call.b),
                     layout(lt, call.c),
                     layout(lt, call.d),
                     {},
                     false};
    made.has_algorithm = choose(lt, handle, call, workspace, made);
    return prepared_.emplace(key, std::move(made)).first->second;
  }

 private:
  static constexpr std::size_t kMostCalls = 4096;

  std::mutex mutex_;
  std::map<int, cublasLtHandle_t> handles_;
  std::map<LtKey, Prepared> prepared_;
};

int current_device() {
  int device = 0;
  PAPERLAB_CUDA_CHECK(cudaGetDevice(&device));
  return device;
}

}  // namespace

bool has_lt_algorithm(const LtCall& call, std::int64_t workspace) {
  const Library& lt = Library::get();
  const int device = current_device();
  Calls& calls = Calls::get();
  const auto lock = calls.lock();
  return calls.prepared(lt, calls.handle(lt, device), device, call, workspace).has_algorithm;
}

void run_lt(const LtCall& call, void* workspace, std::int64_t workspace_bytes,
            const Context& context) {
  const Library& lt = Library::get();
  const int device = current_device();
  Calls& calls = Calls::get();
  const auto lock = calls.lock();
  cublasLtHandle_t handle = calls.handle(lt, device);
  Prepared& prepared = calls.prepared(lt, handle, device, call, workspace_bytes);
  if (!prepared.has_algorithm) {
    throw CudaError(std::string(kFunction) + ": cuBLASLt must have an algorithm for M " +
                    std::to_string(call.d.columns) + ", N " + std::to_string(call.d.rows) + ", K " +
                    std::to_string(call.is_a_transposed ? call.a.rows : call.a.columns) +
                    ", got none");
  }
  if (call.bias != nullptr) {
    set(lt, prepared.description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, call.bias);
  }
  // Scalars are of the type that is accumulated in.
  const bool is_double = call.a.dtype == DType::kFloat64;
  const float ones[] = {1.0F, call.has_beta ? 1.0F : 0.0F};
  const double wide_ones[] = {1.0, call.has_beta ? 1.0 : 0.0};
  const void* alpha = is_double ? static_cast<const void*>(wide_ones) : ones;
  const void* beta = is_double ? static_cast<const void*>(wide_ones + 1) : ones + 1;
  lt.check(lt.matmul(handle, prepared.description.get(), alpha, call.a.data, prepared.a.get(),
                     call.b.data, prepared.b.get(), beta, call.c.data, prepared.c.get(),
                     const_cast<void*>(call.d.data), prepared.d.get(), &prepared.algorithm,
                     workspace, static_cast<std::size_t>(workspace_bytes), context.stream),
           "cublasLtMatmul");
}

}  // namespace paperlab::kernels
