#include "paperlab/core/error.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

namespace paperlab {
namespace {

template <class E>
class ErrorTypeTest : public testing::Test {};

using ErrorTypes = testing::Types<ShapeError, DTypeError, DeviceError, ValueError, UnsupportedError,
                                  IoError, CudaError>;
TYPED_TEST_SUITE(ErrorTypeTest, ErrorTypes);

TYPED_TEST(ErrorTypeTest, IsAnErrorAndAStandardException) {
  try {
    throw TypeParam("module::function: x must be 1, got 2");
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "module::function: x must be 1, got 2");
  }
  EXPECT_THROW(throw TypeParam("text"), std::runtime_error);
}

TYPED_TEST(ErrorTypeTest, RequireSaysFunctionRequirementAndWhatCame) {
  try {
    require<TypeParam>(false, "attention", "q must be [B, H, T, D]", "[2, 3]");
    ADD_FAILURE() << "no error";
  } catch (const TypeParam& error) {
    EXPECT_STREQ(error.what(), "attention: q must be [B, H, T, D], got [2, 3]");
  }
}

TEST(ErrorTest, RequireLetsPassWhatHolds) {
  EXPECT_NO_THROW(require<ValueError>(true, "f", "x must be 1", "1"));
}

TEST(ErrorTest, TypesDoNotCatchOneAnother) {
  EXPECT_THROW(
      {
        try {
          throw ValueError("text");
        } catch (const ShapeError&) {
          ADD_FAILURE() << "a ValueError is not a ShapeError";
        }
      },
      ValueError);
}

}  // namespace
}  // namespace paperlab
