#include "paperlab/data/tokens.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "tests/paperlab/data/token_files.h"

namespace paperlab::data {
namespace {

using experiments::Scratch;
using io::ElementType;

class TokenFileTest : public testing::Test {
 protected:
  template <class T>
  void write(ElementType type, const std::vector<T>& tokens,
             const std::vector<std::uint64_t>& offsets) const {
    io::write_npy(scratch_ / "t.npy", array_of(type, tokens));
    io::write_npy(scratch_ / "o.npy", array_of(ElementType::kU64, offsets));
  }

  TokenFile open(std::int64_t vocab_size = 65536) const {
    return {scratch_ / "t.npy", scratch_ / "o.npy", vocab_size};
  }

  template <class T>
  void expect_copies(ElementType type, std::int64_t vocab_size) const {
    std::vector<T> tokens(300);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = static_cast<T>(i * 2654435761U % static_cast<std::uint64_t>(vocab_size));
    }
    write(type, tokens, {0, 100, 100, 300});
    const TokenFile file = open(vocab_size);
    EXPECT_EQ(file.num_tokens(), 300);
    EXPECT_EQ(file.num_documents(), 3);
    EXPECT_EQ(file.type(), type);
    for (const std::int64_t begin : {0, 1, 63, 299, 300}) {
      for (const std::int64_t count : {0, 1, 63, 64, 65, 129, 299}) {
        if (begin + count > 300) {
          continue;
        }
        std::vector<std::int64_t> out(static_cast<std::size_t>(count), -1);
        file.copy(begin, out);
        for (std::size_t i = 0; i < out.size(); ++i) {
          ASSERT_EQ(out[i], static_cast<std::int64_t>(tokens[static_cast<std::size_t>(begin) + i]));
        }
      }
    }
  }

  Scratch scratch_;
};

TEST_F(TokenFileTest, CopiesAnyRangeOfAnyType) {
  expect_copies<std::uint8_t>(ElementType::kU8, 256);
  expect_copies<std::uint16_t>(ElementType::kU16, 65536);
  expect_copies<std::uint32_t>(ElementType::kU32, std::int64_t{1} << 32);
}

TEST_F(TokenFileTest, RangesOutsideAreRefused) {
  write<std::uint8_t>(ElementType::kU8, {1, 2, 3}, {0, 3});
  const TokenFile file = open();
  std::vector<std::int64_t> out(2);
  PAPERLAB_EXPECT_THROW(file.copy(2, out), ValueError, "tokens of 0..3, got 2 and 2 more");
  PAPERLAB_EXPECT_THROW(file.copy(-1, out), ValueError, "got -1");
  PAPERLAB_EXPECT_THROW(file.copy(INT64_MAX, out), ValueError, "tokens of 0..3");
}

TEST_F(TokenFileTest, ATokenBeyondTheVocabularyIsNamed) {
  std::vector<std::uint32_t> tokens(200, 5);
  tokens[150] = 4'000'000'000U;
  write(ElementType::kU32, tokens, {0, 200});
  const TokenFile file = open(1000);
  std::vector<std::int64_t> out(100);
  file.copy(50, out);
  PAPERLAB_EXPECT_THROW(file.copy(51, out), ValueError,
                        "t.npy: token at 150 is 4000000000, the vocabulary has 1000");
  open(6).copy(0, out);
  PAPERLAB_EXPECT_THROW(open(5).copy(0, out), ValueError, "token at 0 is 5, the vocabulary has 5");
  PAPERLAB_EXPECT_THROW(open(0), ValueError, "vocab_size in 1..2^32, got 0");
  PAPERLAB_EXPECT_THROW(open((std::int64_t{1} << 32) + 1), ValueError, "vocab_size");
}

TEST_F(TokenFileTest, DataAtAnyAddressAreRead) {
  write<std::uint16_t>(ElementType::kU16, {1}, {0, 3});
  const std::string header = "{'descr': '<u4', 'fortran_order': False, 'shape': (3,), }";
  std::ofstream file(scratch_ / "t.npy", std::ios::binary);
  file << std::string("\x93NUMPY\x01\x00", 8) << static_cast<char>(header.size()) << '\0' << header
       << std::string("\1\0\0\0\2\0\0\0\3\0\0\0", 12);
  file.close();
  std::vector<std::int64_t> out(3);
  open().copy(0, out);
  EXPECT_EQ(out, (std::vector<std::int64_t>{1, 2, 3}));
}

TEST_F(TokenFileTest, AnEmptyFileHasNoTokens) {
  write<std::uint8_t>(ElementType::kU8, {}, {0});
  EXPECT_EQ(open().num_tokens(), 0);
  EXPECT_EQ(open().num_documents(), 0);
}

TEST_F(TokenFileTest, HostileFilesAreRefused) {
  const std::vector<std::uint8_t> tokens(10, 1);
  auto refused = [&](const std::vector<std::uint64_t>& offsets, const std::string& part) {
    write(ElementType::kU8, tokens, offsets);
    PAPERLAB_EXPECT_THROW(open(), ValueError, part);
  };
  refused({0, 5, 4, 10}, "o.npy: offset 2 is 4, must be in 5..10");
  refused({0, 11}, "o.npy: offset 1 is 11, must be in 0..10");
  refused({0, std::uint64_t{1} << 63, 10}, "o.npy: offset 1 is 9223372036854775808");
  refused({0, 9}, "o.npy: must go from 0 to the number of tokens, 10");
  refused({1, 10}, "must go from 0");
  refused({}, "must go from 0");
  write(ElementType::kU8, tokens, {0, 10});
  std::filesystem::resize_file(scratch_ / "t.npy", 128 + 9);
  PAPERLAB_EXPECT_THROW(open(), ValueError, "t.npy: has 9 bytes of data");
  std::filesystem::resize_file(scratch_ / "t.npy", 0);
  PAPERLAB_EXPECT_THROW(open(), ValueError, "t.npy: is no .npy file");
  std::filesystem::remove(scratch_ / "t.npy");
  PAPERLAB_EXPECT_THROW(open(), IoError, "t.npy: No such file");
}

TEST_F(TokenFileTest, OtherTypesAndShapesAreRefused) {
  write<std::int64_t>(ElementType::kI64, {1}, {0, 1});
  PAPERLAB_EXPECT_THROW(open(), DTypeError, "t.npy: tokens must be U8, U16 or U32, got I64");
  io::NpyArray table = array_of<std::uint8_t>(ElementType::kU8, {1, 2});
  table.shape = {1, 2};
  io::write_npy(scratch_ / "t.npy", table);
  PAPERLAB_EXPECT_THROW(open(), ValueError, "t.npy: must have one dimension, got 2");
  write<std::uint8_t>(ElementType::kU8, {1}, {0, 1});
  io::write_npy(scratch_ / "o.npy", array_of<std::int64_t>(ElementType::kI64, {0, 1}));
  PAPERLAB_EXPECT_THROW(open(), DTypeError, "o.npy: must be U64, got I64");
}

std::vector<std::uint8_t> text_of(const std::string& text) { return {text.begin(), text.end()}; }

TEST(ByteTokensTest, MarksStandAroundEachDocument) {
  const std::vector<std::uint8_t> text = text_of("abcdef");
  const std::vector<std::uint64_t> offsets{1, 3, 3, 5};
  std::vector<std::uint16_t> wide(4 + 6, 9999);
  byte_tokens<std::uint16_t>(text, offsets, {257, 256}, wide);
  EXPECT_EQ(wide, (std::vector<std::uint16_t>{257, 'b', 'c', 256, 257, 256, 257, 'd', 'e', 256}));
  std::vector<std::uint8_t> narrow(4 + 3, 99);
  byte_tokens<std::uint8_t>(text, offsets, {{}, 0}, narrow);
  EXPECT_EQ(narrow, (std::vector<std::uint8_t>{'b', 'c', 0, 0, 'd', 'e', 0}));
  narrow.resize(4);
  byte_tokens<std::uint8_t>(text, offsets, {}, narrow);
  EXPECT_EQ(narrow, text_of("bcde"));
}

TEST(ByteTokensTest, WhatDoesNotFitIsRefused) {
  const std::vector<std::uint8_t> text = text_of("abc");
  std::vector<std::uint8_t> out(4);
  auto pack = [&](const std::vector<std::uint64_t>& offsets, const Marks& marks) {
    byte_tokens<std::uint8_t>(text, offsets, marks, out);
  };
  PAPERLAB_EXPECT_THROW(pack({0, 2, 1}, {}), ValueError, "offsets in order");
  PAPERLAB_EXPECT_THROW(pack({0, 4}, {}), ValueError, "at most 3");
  PAPERLAB_EXPECT_THROW(pack({}, {}), ValueError, "offsets in order");
  PAPERLAB_EXPECT_THROW(pack({0, 3}, {}), ShapeError, "3 tokens, got 4");
  PAPERLAB_EXPECT_THROW(pack({0, 3}, {{}, 256}), ValueError, "marks up to 255, got 256");
}

class TokenFolderTest : public testing::Test {
 protected:
  TokenFolderTest() {
    std::filesystem::create_directories(scratch_ / "en");
    counting_tokens(scratch_, "en/train", 10, {0, 4, 10});
    manifest_ = {{"format", 1},
                 {"vocab_size", 300},
                 {"dtype", "uint16"},
                 {"domains",
                  {{{"name", "en"},
                    {"splits", {{"train", {{"documents", 2}, {"tokens", 10}, {"bytes", 8}}}}}}}}};
  }

  TokenFolder open(const Json& manifest) const {
    write_json(scratch_ / "manifest.json", manifest);
    return TokenFolder(scratch_ / "");
  }

  void refused(const char* pointer, const Json& value, const std::string& part) const {
    Json manifest = manifest_;
    manifest[Json::json_pointer(pointer)] = value;
    PAPERLAB_EXPECT_THROW(open(manifest), ValueError, part);
    PAPERLAB_EXPECT_THROW(open(manifest), ValueError, "manifest.json: ");
  }

  Scratch scratch_;
  Json manifest_;
};

TEST_F(TokenFolderTest, OpensWhatTheManifestNames) {
  const TokenFolder folder = open(manifest_);
  EXPECT_EQ(folder.domains(), std::vector<std::string>{"en"});
  EXPECT_EQ(folder.vocab_size(), 300);
  EXPECT_EQ(folder.count("en", "train").bytes, 8);
  EXPECT_EQ(folder.open("en", "train")->num_documents(), 2);
  PAPERLAB_EXPECT_THROW(folder.open("de", "train"), ValueError, "no domain 'de'; there are en");
  PAPERLAB_EXPECT_THROW(folder.open("en", "x"), ValueError, "no split 'x'; there are train");
}

TEST_F(TokenFolderTest, AManifestThatLiesIsNamed) {
  Json manifest = manifest_;
  Json& train = manifest["domains"][0]["splits"]["train"];
  train["tokens"] = 11;
  PAPERLAB_EXPECT_THROW(open(manifest).open("en", "train"), ValueError,
                        "train.npy: has 10 tokens in 2 documents, the manifest says 11 in 2");
  train["tokens"] = 10;
  train["documents"] = 3;
  PAPERLAB_EXPECT_THROW(open(manifest).open("en", "train"), ValueError, "says 10 in 3");
  train["documents"] = 2;
  manifest["dtype"] = "uint32";
  PAPERLAB_EXPECT_THROW(open(manifest).open("en", "train"), DTypeError,
                        "train.npy: holds U16, the manifest says U32");
}

TEST_F(TokenFolderTest, MalformedManifestsAreRefused) {
  refused("/format", 2, "is of another format, 2");
  refused("/format", "1", "'format' must be in 1..1000000");
  refused("/vocab_size", 0, "'vocab_size' must be in 1..");
  refused("/vocab_size", std::uint64_t{1} << 63, "'vocab_size' must be in 1..");
  refused("/vocab_size", 3.5, "got 3.5");
  refused("/dtype", "int64", "'dtype' must be uint8, uint16 or uint32");
  refused("/domains", Json::object(), "'domains' must be an array");
  refused("/domains", Json::array(), "at least one");
  refused("/domains/0", 3, "'name' is missing");
  refused("/domains/0/splits", 3, "'splits' must be an object");
  refused("/domains/0/splits/train/tokens", -1, "'tokens' must be in 0..");
  refused("/domains/0/splits/train", nullptr, "'documents' is missing");
  refused("/domains/1", manifest_["domains"][0], "domain en is there twice");
  for (const char* name : {"", ".", "..", "../en", "a/b", ".hidden", "a\nb"}) {
    refused("/domains/0/name", name, "names must be letters");
  }
  scratch_.write("manifest.json", "[1]");
  PAPERLAB_EXPECT_THROW(TokenFolder(scratch_ / ""), ValueError, "'format' is missing");
  scratch_.write("manifest.json", "{");
  PAPERLAB_EXPECT_THROW(TokenFolder(scratch_ / ""), ValueError, "manifest.json: line 1");
  std::filesystem::remove(scratch_ / "manifest.json");
  PAPERLAB_EXPECT_THROW(TokenFolder(scratch_ / ""), IoError, "No such file");
}

}  // namespace
}  // namespace paperlab::data
