#pragma once
// The JSON library's header, parsed once a build (Targets.cmake). A file
// includes what it needs all the same: -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON builds without this.
#include <nlohmann/json.hpp>
