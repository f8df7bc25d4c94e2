#include "paperlab/core/cpu_isa.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <string>

#include "paperlab/core/error.h"

namespace paperlab {
namespace {

class CpuIsaTest : public testing::Test {
 protected:
  void TearDown() override { set_cpu_isa("auto"); }
};

TEST_F(CpuIsaTest, NamesAreThoseOfTheBuild) {
  EXPECT_STREQ(cpu_isa_name(CpuIsa::kGeneric), "generic");
  EXPECT_STREQ(cpu_isa_name(CpuIsa::kAvx2), "avx2");
  EXPECT_STREQ(cpu_isa_name(CpuIsa::kAvx512), "avx512");
}

TEST_F(CpuIsaTest, StartsWithWhatWasDetected) {
  set_cpu_isa("auto");
  EXPECT_EQ(cpu_isa(), detected_cpu_isa());
}

TEST_F(CpuIsaTest, DetectionAgreesWithTheOperatingSystem) {
  std::ifstream file("/proc/cpuinfo");
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const auto begin = text.find("\nflags");
  if (begin == std::string::npos) {
    GTEST_SKIP() << "/proc/cpuinfo lists no flags";
  }
  const std::string flags = text.substr(begin + 1, text.find('\n', begin + 1) - begin - 1) + " ";
  const auto has = [&](const std::string& flag) {
    return flags.find(" " + flag + " ") != std::string::npos;
  };
  const bool has_avx2 = has("avx2") && has("fma");
  const bool has_avx512 = has("avx512f") && has("avx512dq") && has("avx512vl") && has("avx512bw");
  EXPECT_EQ(detected_cpu_isa() == CpuIsa::kAvx512, has_avx512);
  EXPECT_EQ(detected_cpu_isa() >= CpuIsa::kAvx2, has_avx2 || has_avx512);
}

TEST_F(CpuIsaTest, EveryNarrowerInstructionSetCanBeChosen) {
  for (const CpuIsa isa : {CpuIsa::kGeneric, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (isa <= detected_cpu_isa()) {
      set_cpu_isa(cpu_isa_name(isa));
      EXPECT_EQ(cpu_isa(), isa);
    }
  }
}

TEST_F(CpuIsaTest, AWiderInstructionSetThanTheCpusIsUnsupported) {
  if (detected_cpu_isa() == CpuIsa::kAvx512) {
    GTEST_SKIP() << "this CPU has every instruction set of the kernels";
  }
  set_cpu_isa("generic");
  EXPECT_THROW(set_cpu_isa("avx512"), UnsupportedError);
  EXPECT_EQ(cpu_isa(), CpuIsa::kGeneric);
}

TEST_F(CpuIsaTest, AnUnknownNameIsRefusedAndChangesNothing) {
  set_cpu_isa("generic");
  for (const std::string name : {"sse", "AVX2", "", "avx"}) {
    try {
      set_cpu_isa(name);
      ADD_FAILURE() << "no error";
    } catch (const ValueError& error) {
      EXPECT_EQ(error.what(),
                "set_cpu_isa: name must be generic, avx2, avx512 or auto, got " + name);
    }
    EXPECT_EQ(cpu_isa(), CpuIsa::kGeneric);
  }
}

}  // namespace
}  // namespace paperlab
