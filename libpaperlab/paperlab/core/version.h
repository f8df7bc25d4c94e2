#pragma once
/// \file
/// What was built: version, commit and compiler flags.

#include <string>

#include "paperlab/core/export.h"

namespace paperlab {

struct BuildInfo {
  const char* version;  ///< project(paperlab VERSION ...) of CMakeLists.txt.
  const char* commit;   ///< Short hash, "-dirty.<hash of the difference>" if changed, or "unknown".
  const char* compiler;  ///< Name and version.
  const char* flags;     ///< Compiler flags common to all files.
  const char* torch;     ///< Version of LibTorch it was built with, "" without.
  const char* cuda;      ///< Version of the CUDA compiler, "" without.
};

PAPERLAB_API const BuildInfo& build_info();

/// The linker's build ids of the running program and of this library: another id, another program,
/// whatever its commit says.
PAPERLAB_API std::string program_id();

}  // namespace paperlab
