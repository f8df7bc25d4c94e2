#pragma once
// The dtypes of a model's parameters by their names in Python.

#include <c10/core/ScalarType.h>

#include <map>
#include <string>

namespace paperlab::bindings {

inline const std::map<std::string, at::ScalarType> kDtypes = {{"float32", at::kFloat},
                                                              {"float64", at::kDouble},
                                                              {"bfloat16", at::kBFloat16},
                                                              {"float16", at::kHalf}};

}  // namespace paperlab::bindings
