// The fuzz targets over the corpus and over inputs made from it, in every build: libFuzzer itself
// needs clang. PAPERLAB_CORPUS is the folder of the corpus.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "tests/fuzz/targets.h"

namespace paperlab::io {
namespace {

using Input = std::vector<std::uint8_t>;
using Target = void (*)(const std::uint8_t*, std::size_t);

std::vector<Input> corpus(const std::string& name) {
  std::vector<std::filesystem::path> paths;
  for (const auto& item : std::filesystem::directory_iterator(PAPERLAB_CORPUS "/" + name)) {
    paths.push_back(item.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Input> inputs;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return inputs;
}

// A few bytes changed, removed or doubled.
Input mutated(Input input, std::mt19937& random) {
  for (std::uint32_t edits = 1 + random() % 4; edits > 0 && !input.empty(); --edits) {
    const auto at = static_cast<std::ptrdiff_t>(random() % input.size());
    switch (random() % 5) {
      case 0:
        input[static_cast<std::size_t>(at)] = static_cast<std::uint8_t>(random());
        break;
      case 1:
        input[static_cast<std::size_t>(at)] ^= static_cast<std::uint8_t>(1U << random() % 8);
        break;
      case 2:
        input.erase(input.begin() + at);
        break;
      case 3:
        input.insert(input.begin() + at, input[random() % input.size()]);
        break;
      default:
        input.resize(static_cast<std::size_t>(at));
    }
  }
  return input;
}

void replay(Target target, const std::string& name) {
  const std::vector<Input> inputs = corpus(name);
  ASSERT_GE(inputs.size(), 10U);
  std::mt19937 random(7);  // its numbers are the same everywhere
  for (const Input& input : inputs) {
    target(input.data(), input.size());
    for (int i = 0; i < 200; ++i) {
      const Input other = mutated(input, random);
      target(other.data(), other.size());
    }
  }
}

TEST(FuzzReplayTest, SafetensorsCorpusAndItsNeighboursHoldTogether) {
  replay(fuzz_safetensors, "safetensors");
}

TEST(FuzzReplayTest, NpyCorpusAndItsNeighboursHoldTogether) { replay(fuzz_npy, "npy"); }

TEST(FuzzReplayTest, ConfigCorpusAndItsNeighboursHoldTogether) { replay(fuzz_config, "config"); }

}  // namespace
}  // namespace paperlab::io
