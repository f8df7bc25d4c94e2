#include "paperlab/mudd/config.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/paperlab/mudd/mudd_cases.h"

namespace paperlab::mudd {
namespace {

using Numbers = std::vector<std::int64_t>;

MuddConfig with(const std::function<void(MuddConfig&)>& change) {
  MuddConfig config = small(Variant::kMudd);
  change(config);
  return config;
}

TEST(MuddConfigTest, EveryVariantIsValid) {
  for (const Variant variant : kVariants) {
    MuddConfig config = small(variant);
    EXPECT_NO_THROW(check(config));
    config.parallel_block = true;
    EXPECT_NO_THROW(check(config));
  }
}

TEST(MuddConfigTest, DefaultsAreThePapers) {
  const MuddConfig config;
  EXPECT_EQ(config.variant, Variant::kMudd);
  EXPECT_EQ(config.ways, "QKVR");
  EXPECT_EQ(config.norm_eps, 1e-6);
  EXPECT_EQ(config.rope_base, 10000.0);
  EXPECT_EQ(config.hidden_round, 0);
  EXPECT_EQ(config.last_hidden_expand, 4);
  EXPECT_EQ(config.ffn_round, 128);
  EXPECT_EQ((Numbers{config.dilation, config.period, config.num_streams}), (Numbers{1, 1, 4}));
  EXPECT_FALSE(config.window || config.has_qk_norm || config.parallel_block);
}

TEST(MuddConfigTest, FfnWidthsAreReallocatedForMuddAlone) {
  for (const Variant variant : kVariants) {
    MuddConfig config = small(variant);
    config.ffn_reallocation.reset();
    EXPECT_EQ(has_ffn_reallocation(config), variant == Variant::kMudd);
    EXPECT_EQ(ffn_dims_of(config).size(), variant == Variant::kMudd ? 8U : 0U);
    config.ffn_reallocation = true;
    EXPECT_EQ(ffn_dims_of(config).size(), 8U);
  }
}

struct BadOption {
  const char* name;  // that the message holds
  std::function<void(MuddConfig&)> change;
};

const BadOption kBadOptions[] = {
    {"vocab_size", [](MuddConfig& c) { c.vocab_size = 0; }},
    {"vocab_size", [](MuddConfig& c) { c.vocab_size = std::int64_t{1} << 31; }},
    {"num_layers", [](MuddConfig& c) { c.num_layers = 0; }},
    {"num_layers", [](MuddConfig& c) { c.num_layers = 10'001; }},
    {"d_model", [](MuddConfig& c) { c.d_model = -64; }},
    {"d_model", [](MuddConfig& c) { c.d_model = 66; }},
    {"num_heads", [](MuddConfig& c) { c.num_heads = 0; }},
    {"num_heads", [](MuddConfig& c) { c.num_heads = 5; }},
    {"head_dim", [](MuddConfig& c) { c.num_heads = 64; }},
    {"head_dim", [](MuddConfig& c) { c.head_dim = 7; }},
    {"head_dim", [](MuddConfig& c) { c.head_dim = -2; }},
    {"head_dim", [](MuddConfig& c) { c.head_dim = 258; }},
    {"head_dim", [](MuddConfig& c) { c.d_model = 1032; }},
    {"num_kv_heads", [](MuddConfig& c) { c.num_kv_heads = 3; }},
    {"num_kv_heads", [](MuddConfig& c) { c.num_kv_heads = -1; }},
    {"rotary_pct", [](MuddConfig& c) { c.rotary_pct = 1.5; }},
    {"rotary_pct", [](MuddConfig& c) { c.rotary_pct = std::numeric_limits<double>::quiet_NaN(); }},
    {"d_ff", [](MuddConfig& c) { c.d_ff = 0; }},
    {"norm_eps", [](MuddConfig& c) { c.norm_eps = 0.0; }},
    {"norm_eps", [](MuddConfig& c) { c.norm_eps = -1e-6; }},
    {"norm_eps", [](MuddConfig& c) { c.norm_eps = std::numeric_limits<double>::infinity(); }},
    {"norm_eps", [](MuddConfig& c) { c.norm_eps = std::numeric_limits<double>::quiet_NaN(); }},
    {"rope_base", [](MuddConfig& c) { c.rope_base = 0.0; }},
    {"max_positions", [](MuddConfig& c) { c.max_positions = 0; }},
    {"ways", [](MuddConfig& c) { c.ways = ""; }},
    {"ways", [](MuddConfig& c) { c.ways = "QKVX"; }},
    {"ways", [](MuddConfig& c) { c.ways = "QQ"; }},
    {"ways", [](MuddConfig& c) { c.ways = "QKVRR"; }},
    {"ways", [](MuddConfig& c) { c.ways = "RQ"; }},
    {"ways", [](MuddConfig& c) { c.ways = "qkvr"; }},
    {"hidden_round", [](MuddConfig& c) { c.hidden_round = -1; }},
    {"last_hidden_expand", [](MuddConfig& c) { c.last_hidden_expand = 0; }},
    {"dilation", [](MuddConfig& c) { c.dilation = 0; }},
    {"period", [](MuddConfig& c) { c.period = 0; }},
    {"window", [](MuddConfig& c) { c.window = 0; }},
    {"window", [](MuddConfig& c) { c.window = 2, c.dilation = 2; }},
    {"num_streams", [](MuddConfig& c) { c.num_streams = 0; }},
    {"ffn_round", [](MuddConfig& c) { c.ffn_round = 0; }},
    {"d_ff", [](MuddConfig& c) { c.ffn_reallocation = true, c.d_ff = 64; }},
    {"1e13",
     [](MuddConfig& c) {
       c.hidden_round = c.d_model = std::int64_t{1} << 30;
       c.head_dim = 16;
     }},
};

TEST(MuddConfigTest, BadOptionsAreNamed) {
  for (const BadOption& bad : kBadOptions) {
    const std::string message = value_error([&] { check(with(bad.change)); });
    EXPECT_TRUE(message.starts_with("MuddFormer: ")) << bad.name << ": " << message;
    EXPECT_NE(message.find(bad.name), std::string::npos) << bad.name << ": " << message;
  }
}

TEST(MuddConfigTest, HeadsMayHaveTheirOwnWidthAndShareKeys) {
  const MuddConfig config = with([](MuddConfig& c) { c.num_kv_heads = 1, c.head_dim = 6; });
  EXPECT_NO_THROW(check(config));
  EXPECT_EQ(num_kv_heads_of(config), 1);
  EXPECT_EQ(head_dim_of(config), 6);
  EXPECT_EQ(num_kv_heads_of(small(Variant::kBase)), 4);
  EXPECT_EQ(head_dim_of(small(Variant::kBase)), 16);
}

TEST(MuddConfigTest, PythiaRotatesAQuarterOfAHead) {
  EXPECT_EQ(rotary_dim_of(small(Variant::kMudd)), 16);
  const auto pythia = [](std::int64_t head_dim, double part) {
    return rotary_dim_of(with([&](MuddConfig& c) {
      c.parallel_block = true;
      c.head_dim = head_dim;
      c.rotary_pct = part;
    }));
  };
  EXPECT_EQ(pythia(16, 0.0), 4);
  EXPECT_EQ(pythia(80, 0.0), 20);
  EXPECT_EQ(pythia(20, 0.0), 4);  // 5 lanes make 2 pairs
  EXPECT_EQ(pythia(4, 0.0), 2);
  EXPECT_EQ(pythia(16, 1.0), 16);
  EXPECT_EQ(pythia(16, 0.5), 8);
}

TEST(MuddConfigTest, AggregatesStandAfterEachBlock) {
  for (const Variant variant : kVariants) {
    const MuddConfig config = small(variant);
    for (std::int64_t layer = 0; layer < 8; ++layer) {
      EXPECT_EQ(aggregate_after(config, layer), is_dense(variant));
      if (!is_dense(variant)) {
        EXPECT_EQ(ways_of(config, layer), "");
        EXPECT_TRUE(sources_of(config, layer).empty());
        EXPECT_EQ(hidden_size(config, layer), 0);
        continue;
      }
      Numbers all(static_cast<std::size_t>(layer + 2));
      std::iota(all.begin(), all.end(), 0);
      EXPECT_EQ(sources_of(config, layer), all);
      EXPECT_EQ(ways_of(config, layer), is_multiway(variant) && layer < 7 ? "QKVR" : "R");
    }
  }
}

TEST(MuddConfigTest, WaysWithoutTheResidualHaveNoLastAggregate) {
  const MuddConfig config = with([](MuddConfig& c) { c.ways = "QKV"; });
  EXPECT_EQ(ways_of(config, 0), "QKV");
  EXPECT_EQ(hidden_size(config, 0), 6);
  EXPECT_EQ(ways_of(config, 6), "QKV");
  EXPECT_FALSE(aggregate_after(config, 7));
  EXPECT_TRUE(sources_of(config, 7).empty());
  MuddConfig single = small(Variant::kDynamic);
  single.ways = "QKV";  // of no use there
  EXPECT_TRUE(aggregate_after(single, 7));
}

TEST(MuddConfigTest, WayNormsStandInMultiwayBlocksButTheFirst) {
  for (const Variant variant : kVariants) {
    EXPECT_FALSE(has_way_norms(small(variant), 0));
    EXPECT_EQ(has_way_norms(small(variant), 1), is_multiway(variant));
    EXPECT_EQ(has_way_norms(small(variant), 7), is_multiway(variant));
  }
}

TEST(MuddConfigTest, DilationKeepsTheResidueOfTheBlock) {
  const MuddConfig config = with([](MuddConfig& c) { c.dilation = 3; });
  EXPECT_EQ(sources_of(config, 0), (Numbers{1}));
  EXPECT_EQ(sources_of(config, 1), (Numbers{2}));
  EXPECT_EQ(sources_of(config, 2), (Numbers{0, 3}));
  EXPECT_EQ(sources_of(config, 3), (Numbers{1, 4}));
  EXPECT_EQ(sources_of(config, 7), (Numbers{2, 5, 8}));
  EXPECT_EQ(hidden_size(config, 0), 4);
  EXPECT_EQ(hidden_size(config, 2), 8);
  EXPECT_EQ(hidden_size(config, 7), 12);
}

TEST(MuddConfigTest, PeriodSkipsBlocks) {
  const MuddConfig config = with([](MuddConfig& c) { c.period = 3; });
  std::string places;
  for (std::int64_t layer = 0; layer < 8; ++layer) {
    places += aggregate_after(config, layer) ? 'x' : '.';
  }
  EXPECT_EQ(places, "..x..x..");  // 8 is no multiple of 3: the output is X_8
  EXPECT_EQ(sources_of(config, 5), (Numbers{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_TRUE(sources_of(config, 4).empty());
}

TEST(MuddConfigTest, PeriodAndDilationTogether) {
  const MuddConfig config = with([](MuddConfig& c) { c.period = c.dilation = 2; });
  EXPECT_FALSE(aggregate_after(config, 0));
  EXPECT_EQ(sources_of(config, 1), (Numbers{0, 2}));
  EXPECT_EQ(sources_of(config, 7), (Numbers{0, 2, 4, 6, 8}));
}

TEST(MuddConfigTest, WindowReadsTheEmbeddingAndTheNewest) {
  const auto sources = [](std::int64_t window, std::int64_t layer) {
    return sources_of(with([&](MuddConfig& c) { c.window = window; }), layer);
  };
  EXPECT_EQ(sources(1, 0), (Numbers{0, 1}));
  EXPECT_EQ(sources(1, 7), (Numbers{0, 8}));
  EXPECT_EQ(sources(3, 1), (Numbers{0, 1, 2}));
  EXPECT_EQ(sources(3, 2), (Numbers{0, 1, 2, 3}));
  EXPECT_EQ(sources(3, 3), (Numbers{0, 2, 3, 4}));
  EXPECT_EQ(sources(100, 7), (Numbers{0, 1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(sources(0x7fffffff, 7), (Numbers{0, 1, 2, 3, 4, 5, 6, 7, 8}));
}

TEST(MuddConfigTest, HiddenSizesAreThoseOfThePaper) {
  const MuddConfig multiway = small(Variant::kMultiwayDynamic);
  const MuddConfig single = small(Variant::kDynamic);
  for (std::int64_t layer = 0; layer < 7; ++layer) {
    EXPECT_EQ(hidden_size(multiway, layer), 4 * (layer + 2));
    EXPECT_EQ(hidden_size(single, layer), layer + 2);
    EXPECT_EQ(hidden_size(small(Variant::kStatic), layer), 0);
    EXPECT_EQ(hidden_size(small(Variant::kMultiwayStatic), layer), 0);
  }
  EXPECT_EQ(hidden_size(multiway, 7), 4 * 9);  // one way, times four
  EXPECT_EQ(hidden_size(single, 7), 4 * 9);
  EXPECT_EQ(hidden_size(with([](MuddConfig& c) { c.last_hidden_expand = 1; }), 7), 9);
}

TEST(MuddConfigTest, HiddenSizesCountWaysAndSources) {
  for (const std::int64_t period : {1, 2, 3}) {
    for (const std::int64_t dilation : {1, 2, 3, 5, 100}) {
      for (const std::int64_t window : {0, 1, 2, 5, 100}) {
        const MuddConfig config = with([&](MuddConfig& c) {
          c.ways = "KVR";
          c.period = period;
          c.dilation = window == 0 ? dilation : 1;
          c.window = window == 0 ? std::nullopt : std::optional(window);
          c.last_hidden_expand = 5;
        });
        for (std::int64_t layer = 0; layer < 8; ++layer) {
          const auto weights = static_cast<std::int64_t>(ways_of(config, layer).size() *
                                                         sources_of(config, layer).size());
          EXPECT_EQ(hidden_size(config, layer), weights * (layer == 7 ? 5 : 1));
        }
      }
    }
  }
}

// (floor(K / 64) + 1) 64: always up, from an exact multiple too.
TEST(MuddConfigTest, HiddenSizesAreRoundedAsReleased) {
  const auto rounded = [](std::int64_t num_layers, std::int64_t layer) {
    return hidden_size(with([&](MuddConfig& c) {
                         c.num_layers = num_layers;
                         c.hidden_round = 64;
                       }),
                       layer);
  };
  EXPECT_EQ(rounded(32, 0), 64);
  EXPECT_EQ(rounded(32, 13), 64);
  EXPECT_EQ(rounded(32, 14), 128);  // from 64
  EXPECT_EQ(rounded(32, 31), 192);  // from 132
  EXPECT_EQ(rounded(24, 23), 128);  // from 100
}

TEST(ReallocatedFfnDimsTest, PublishedLists) {
  EXPECT_EQ(reallocated_ffn_dims(2816, 24),
            (Numbers{1408, 1536, 1664, 1792, 1920, 2048, 2176, 2304, 2432, 2560, 2688, 2816,
                     2816, 2944, 3072, 3200, 3328, 3456, 3584, 3712, 3840, 3968, 4096, 4224}));
  EXPECT_EQ(reallocated_ffn_dims(6912, 32),
            (Numbers{3456, 3712, 3840, 4096, 4352, 4608, 4736, 4992, 5248,  5504, 5632,
                     5888, 6144, 6400, 6528, 6784, 7040, 7296, 7424, 7680,  7936, 8192,
                     8320, 8576, 8832, 9088, 9216, 9472, 9728, 9984, 10112, 10368}));
  EXPECT_EQ(
      reallocated_ffn_dims(8192, 24),
      (Numbers{4096, 4480, 4864, 5120, 5504, 5888,  6272,  6528,  6912,  7296,  7680,  8064,
               8320, 8704, 9088, 9472, 9856, 10112, 10496, 10880, 11264, 11520, 11904, 12288}));
  EXPECT_EQ(reallocated_ffn_dims(10240, 32),
            (Numbers{5120,  5504,  5760,  6144,  6400,  6784,  7040,  7424,  7808,  8064,  8448,
                     8704,  9088,  9472,  9728,  10112, 10368, 10752, 11008, 11392, 11776, 12032,
                     12416, 12672, 13056, 13440, 13696, 14080, 14336, 14720, 14976, 15360}));
}

TEST(ReallocatedFfnDimsTest, TheSumIsKept) {
  for (const auto& [d_ff, num_layers] :
       {std::pair{2816, 24}, {6912, 32}, {8192, 24}, {10240, 32}}) {
    const Numbers widths = reallocated_ffn_dims(d_ff, num_layers);
    EXPECT_EQ(std::accumulate(widths.begin(), widths.end(), std::int64_t{0}),
              std::int64_t{d_ff} * num_layers);
  }
}

TEST(ReallocatedFfnDimsTest, HalvesGoToTheEvenNeighbour) {
  EXPECT_EQ(reallocated_ffn_dims(5, 2, 1), (Numbers{2, 8}));     // 2.5, 7.5
  EXPECT_EQ(reallocated_ffn_dims(3, 3, 1), (Numbers{2, 3, 4}));  // 1.5, 3, 4.5
  EXPECT_EQ(reallocated_ffn_dims(256, 4), (Numbers{128, 256, 256, 384}));
  EXPECT_EQ(reallocated_ffn_dims(172, 3), (Numbers{128, 128, 256}));
}

TEST(ReallocatedFfnDimsTest, OneBlockHasTheWholeWidth) {
  EXPECT_EQ(reallocated_ffn_dims(2816, 1), (Numbers{2816}));
  EXPECT_EQ(reallocated_ffn_dims(170, 1), (Numbers{128}));
  EXPECT_EQ(reallocated_ffn_dims(170, 1, 1), (Numbers{170}));
}

TEST(ReallocatedFfnDimsTest, BadArgumentsAreNamed) {
  const auto error = [](std::int64_t d_ff, std::int64_t num_layers, std::int64_t round_to) {
    return value_error([&] { reallocated_ffn_dims(d_ff, num_layers, round_to); });
  };
  EXPECT_TRUE(error(0, 4, 128).starts_with("reallocated_ffn_dims: d_ff"));
  EXPECT_TRUE(error(256, 0, 128).starts_with("reallocated_ffn_dims: num_layers"));
  EXPECT_TRUE(error(256, 10'001, 128).starts_with("reallocated_ffn_dims: num_layers"));
  EXPECT_TRUE(error(256, 4, 0).starts_with("reallocated_ffn_dims: round_to"));
  EXPECT_TRUE(error(128, 4, 128).starts_with("reallocated_ffn_dims: d_ff"));  // 64 goes to 0
  EXPECT_EQ(error(129, 4, 128), "");
}

}  // namespace
}  // namespace paperlab::mudd
