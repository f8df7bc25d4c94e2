// MUDDViT's parameters: counted at the paper's size, and options that cannot be.
#include "paperlab/mudd/vit_config.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/mudd/complexity.h"

namespace paperlab::mudd {
namespace {

// ViT-S/16 of Table 8.
VitConfig small16(Variant variant) {
  VitConfig config;
  config.patches = {3, 224, 224, 16, 16};
  config.num_labels = 1000;
  config.model.num_layers = 12;
  config.model.d_model = 384;
  config.model.num_heads = 6;
  config.model.d_ff = 1536;
  config.model.variant = variant;
  config.model.pre_post_norm = PrePostNorm::kEq10;
  return config;
}

std::int64_t count(const VitConfig& config) {
  std::int64_t total = 0;
  std::set<std::string> names;
  for (const nn::ParameterSpec& spec : parameter_specs(config)) {
    std::int64_t size = 1;
    for (const std::int64_t extent : spec.shape) {
      size *= extent;
    }
    total += size;
    names.insert(spec.name);
  }
  EXPECT_EQ(names.size(), parameter_specs(config).size());
  return total;
}

TEST(VitConfigTest, CountsOfTheModelsOfTable8) {
  // By hand: 12 blocks of 4 D^2 + 2 D F matrices with biases and two norms, patches, positions,
  // final norm, head.
  const std::int64_t width = 384;
  const std::int64_t ffn = 1536;
  const std::int64_t block =
      4 * (width * width + width) + 2 * width * ffn + ffn + width + 4 * width;
  const std::int64_t ends = 768 * width + width + 196 * width + 2 * width + 1000 * width + 1000;
  EXPECT_EQ(count(small16(Variant::kBase)), 12 * block + ends);  // 22.05M
  // Generators with one way and four times the hidden width in the last block, as released but for
  // the rounding; then norms: two more in 11 blocks, sources, sums, generators.
  const std::int64_t norms = 44 * width + 13 * width + 45 * width + 12 * width;
  std::int64_t connections = 0;
  for (std::int64_t j = 2; j <= 13; ++j) {
    const std::int64_t ways = j == 13 ? 1 : 4;
    connections += width * 4 * j + 4 * j * ways * j + ways * j;
  }
  EXPECT_EQ(count(small16(Variant::kMultiwayDynamic)) - count(small16(Variant::kBase)),
            connections + norms);
  EXPECT_NEAR(1.0 + complexity(12, 384, 196).param_ratio, 1.007, 5e-4);  // Table 9
}

TEST(VitConfigTest, ReallocatedWidthsGrowWithDepth) {
  std::vector<std::int64_t> widths;
  for (const nn::ParameterSpec& spec : parameter_specs(small16(Variant::kMudd))) {
    if (spec.role == nn::Role::kUp && !spec.is_bias) {
      widths.push_back(spec.shape[0]);
    }
  }
  EXPECT_EQ(widths, reallocated_ffn_dims(1536, 12));
}

TEST(VitConfigTest, OptionsThatCannotBe) {
  const std::vector<std::function<void(VitConfig&)>> changes = {
      [](VitConfig& c) { c.patches.num_channels = 0; },
      [](VitConfig& c) { c.patches.height = 225; },
      [](VitConfig& c) { c.num_labels = 0; },
      [](VitConfig& c) { c.model.num_heads = 5; },
      [](VitConfig& c) { c.model.d_model = 390; },  // no multiple of 4
      [](VitConfig& c) { c.model.num_heads = 1; },  // 384 lanes
      [](VitConfig& c) { c.model.variant = Variant::kHyperConnections; },
      [](VitConfig& c) { c.model.ways = "RQ"; },
      [](VitConfig& c) { c.patches.image_width = c.patches.image_height = 0x7fffffff; },
  };
  for (const auto& change : changes) {
    VitConfig config = small16(Variant::kMultiwayDynamic);
    change(config);
    EXPECT_THROW(check(config), ValueError);
    EXPECT_THROW(parameter_specs(config), ValueError);
  }
}

}  // namespace
}  // namespace paperlab::mudd
