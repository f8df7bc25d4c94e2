#pragma once
/// \file
/// The instruction set that CPU kernels use: the widest that CPUID reports, unless told otherwise.

#include <string>

#include "paperlab/core/export.h"

namespace paperlab {

enum class CpuIsa { kGeneric, kAvx2, kAvx512 };

/// The widest instruction set of this CPU and operating system that the kernels are compiled for.
PAPERLAB_API CpuIsa detected_cpu_isa();

/// The instruction set in use.
PAPERLAB_API CpuIsa cpu_isa();

/// Whether kernels may use AVX-512 BF16 (products of bfloat16 pairs): the CPU has it and the
/// instruction set in use is kAvx512.
PAPERLAB_API bool cpu_has_bfloat16();

/// Sets the instruction set in use, for the whole process.
/// \param name  "generic", "avx2", "avx512" or "auto" (what was detected).
/// \throws ValueError  if `name` is none of these; UnsupportedError if this CPU lacks it.
PAPERLAB_API void set_cpu_isa(const std::string& name);

/// The CPU's name as the system reports it, or "unknown".
PAPERLAB_API std::string cpu_model();

/// "generic", "avx2" or "avx512".
PAPERLAB_API const char* cpu_isa_name(CpuIsa isa);

}  // namespace paperlab
