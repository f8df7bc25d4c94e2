#include "paperlab/core/version.h"

#include "version_generated.h"

namespace paperlab {

const BuildInfo& build_info() {
  static const BuildInfo info{PAPERLAB_VERSION, PAPERLAB_COMMIT,        PAPERLAB_COMPILER,
                              PAPERLAB_FLAGS,   PAPERLAB_TORCH_VERSION, PAPERLAB_CUDA_VERSION};
  return info;
}

}  // namespace paperlab
