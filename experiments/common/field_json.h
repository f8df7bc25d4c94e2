#pragma once
/// \file
/// The fields of a Config from and to JSON.

#include <cstddef>
#include <string>
#include <vector>

#include "experiments/common/field.h"
#include "paperlab/core/json.h"

namespace paperlab::experiments {

enum class Mode { kCheckOnly, kAssign };

/// Checks that `value` fits `field`, and assigns it if asked. Integers may be written as 1e6.
/// \param where  What the message calls the value: "FILE: key" or "--set key".
/// \throws UsageError  naming `where`, what is required and what came; nothing is assigned then.
void apply(const Field& field, const Json& value, const std::string& where, Mode mode);

/// The present values of `fields` by name.
Json values_of(const std::vector<Field>& fields);

/// "name=value" for each field with its present value, over lines of at most `width` columns.
std::string describe_fields(const std::vector<Field>& fields, std::size_t width);

}  // namespace paperlab::experiments
