#include "paperlab/core/version.h"

#include <gtest/gtest.h>

#include <regex>
#include <string>

namespace paperlab {
namespace {

TEST(VersionTest, VersionIsThreeNumbers) {
  EXPECT_TRUE(std::regex_match(build_info().version, std::regex(R"(\d+\.\d+\.\d+)")));
}

TEST(VersionTest, CommitIsAHashOrUnknown) {
  EXPECT_TRUE(std::regex_match(build_info().commit,
                               std::regex("unknown|[0-9a-f]{12}(-dirty\\.[0-9a-f]{8})?")))
      << build_info().commit;
}

TEST(VersionTest, CompilerAndFlagsAreThoseOfTheBuild) {
  EXPECT_EQ(std::string(build_info().compiler), "GNU " + std::to_string(__GNUC__) + "." +
                                                    std::to_string(__GNUC_MINOR__) + "." +
                                                    std::to_string(__GNUC_PATCHLEVEL__));
  EXPECT_NE(std::string(build_info().flags).find("-ffp-contract=off"), std::string::npos);
}

TEST(VersionTest, NothingIsNull) {
  EXPECT_NE(build_info().torch, nullptr);
  EXPECT_NE(build_info().cuda, nullptr);
}

}  // namespace
}  // namespace paperlab
