#include "paperlab/io/safetensors.h"

#include <gtest/gtest.h>
#include <sys/sysinfo.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "tests/paperlab/io/safetensors_cases.h"

namespace paperlab::io {
namespace {

const std::string kTwo =
    '{' + entry("a", "F32", "[2,3]", "[0,24]") + ',' + entry("b", "BF16", "[]", "[24,26]") + '}';

class SafetensorsTest : public testing::Test {
 protected:
  std::string file(const std::string& header, const std::string& data = "") const {
    return scratch_.write("file.safetensors", raw_file(header, data));
  }

  /// Checks that the file is refused with its name and a message that holds `part`.
  void expect_refused(const std::string& content, const std::string& part) const {
    const std::string path = scratch_.write("file.safetensors", content);
    PAPERLAB_EXPECT_THROW(SafetensorsFile{path}, ValueError, part);
    PAPERLAB_EXPECT_THROW(SafetensorsFile{path}, ValueError, path + ": ");
  }

  void expect_header_refused(const std::string& header, const std::string& part,
                             const std::string& data = "") const {
    expect_refused(raw_file(header, data), part);
  }

  Scratch scratch_;
};

TEST_F(SafetensorsTest, ReadsTensorsInTheOrderOfTheirBytes) {
  const SafetensorsFile read(file(R"({"__metadata__":{"k":"v"},)" +
                                      entry("b", "U8", "[1]", "[4,5]") + ',' +
                                      entry("a", "I32", "[1]", "[0,4]") + '}',
                                  "abcde"));
  ASSERT_EQ(read.tensors().size(), 2U);
  EXPECT_EQ(read.tensors()[0].name, "a");
  EXPECT_EQ(read.tensors()[0].type, ElementType::kI32);
  EXPECT_EQ(read.tensors()[1].shape, std::vector<std::int64_t>{1});
  EXPECT_EQ(read.metadata(), (Metadata{{"k", "v"}}));
  EXPECT_EQ(read.find("c"), nullptr);
  PAPERLAB_EXPECT_THROW(read.at("c\n"), ValueError, "has no tensor 'c\\n'");
  const TensorEntry& b = read.at("b");
  char byte = 0;
  read.file().read({b.offset, b.num_bytes, &byte});
  EXPECT_EQ(byte, 'e');
}

TEST_F(SafetensorsTest, AFileWithoutTensorsOrMetadataIsRead) {
  EXPECT_TRUE(SafetensorsFile(file("{}")).tensors().empty());
  EXPECT_FALSE(SafetensorsFile(file("{}  ")).metadata().has_value());
  EXPECT_TRUE(SafetensorsFile(file(R"({"__metadata__":{}})")).metadata() == Metadata{});
}

TEST_F(SafetensorsTest, EveryPrefixOfAFileIsRefused) {
  const std::string whole = raw_file(kTwo, std::string(26, 'x'));
  EXPECT_EQ(SafetensorsFile(scratch_.write("file.safetensors", whole)).tensors().size(), 2U);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    expect_refused(whole.substr(0, size), "");
  }
}

TEST_F(SafetensorsTest, BytesBehindTheTensorsAreRefused) {
  expect_header_refused(kTwo, "1 bytes follow the last tensor", std::string(27, 'x'));
  expect_header_refused("{}", "1 bytes follow", "x");
}

TEST_F(SafetensorsTest, LengthsThatDoNotFitAreRefused) {
  expect_refused("", "has 0 bytes");
  expect_refused("1234567", "has 7 bytes");
  expect_refused(std::string(8, '\xFF') + "{}", "18446744073709551615 bytes; the format allows");
  expect_refused(std::string("\x01\xE1\xF5\x05\0\0\0\0{}", 10), "100000001 bytes; the format");
  expect_refused(std::string("\x03\0\0\0\0\0\0\0{}", 10), "3 bytes in a file of 10");
  expect_refused(std::string("\0\0\0\0\0\0\0\0{}", 10), "must start with '{'");
}

TEST_F(SafetensorsTest, HeadersThatAreNoJsonObjectAreRefused) {
  expect_header_refused("[]", "must start with '{'");
  expect_header_refused(" {}", "must start with '{'");
  expect_header_refused("\xEF\xBB\xBF{}", "must start with '{'");
  expect_header_refused("{", "not JSON at byte");
  expect_header_refused("{}x", "not JSON at byte 3");
  expect_header_refused("{}{}", "not JSON");
  expect_header_refused(std::string("{}\0", 3), "not JSON");
  expect_header_refused("{\"\xFF\":1}", "not JSON");
  expect_header_refused(R"({"\uD800":1})", "not JSON");
  expect_header_refused("{\"a\":" + std::string(100'000, '['),
                        "'a' must be an object, got an array");
  expect_header_refused("{\"a\":{\"dtype\":" + std::string(100'000, '{'), "dtype must be a string");
}

TEST_F(SafetensorsTest, NamesThatComeTwiceAreRefused) {
  const std::string a = entry("a", "U8", "[1]", "[0,1]");
  expect_header_refused('{' + a + ',' + a + '}', "tensor 'a' is there twice", "x");
  expect_header_refused('{' + a + ',' + entry("\\u0061", "U8", "[0]", "[1,1]") + '}', "twice", "x");
  expect_header_refused(R"({"__metadata__":{},"__metadata__":{}})",
                        "'__metadata__' is there twice");
  expect_header_refused(R"({"__metadata__":{"k":"1","k":"2"}})", "'k' is there twice");
  expect_header_refused(R"({"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
                        "tensor 'a': dtype is there twice");
}

TEST_F(SafetensorsTest, FieldsOfTheWrongFormAreRefused) {
  expect_header_refused(R"({"a":1})", "'a' must be an object, got the number 1");
  expect_header_refused(R"({"a":null})", "got null");
  expect_header_refused(R"({"__metadata__":"x"})", "'__metadata__' must be an object");
  expect_header_refused(R"({"__metadata__":{"k":1}})", "__metadata__: 'k' must be a string");
  expect_header_refused(R"({"__metadata__":{"k":{}}})", "__metadata__: 'k' must be a string");
  expect_header_refused(R"({"a":{"dtype":"U8","shape":[0]}})", "'a': data_offsets is missing");
  expect_header_refused(R"({"a":{"shape":[0],"data_offsets":[0,0]}})", "dtype is missing");
  expect_header_refused(R"({"a":{"dtype":"U8","data_offsets":[0,0]}})", "shape is missing");
  expect_header_refused(R"({"a":{"more":1}})", "tensor 'a': unknown key 'more'");
  expect_header_refused('{' + entry("a", "F12", "[0]", "[0,0]") + '}', "one of BOOL, F4");
  expect_header_refused(R"({"a":{"dtype":7}})", "dtype must be a string, got the number 7");
  for (const char* shape : {"[-1]", "[1.0]", "[1e0]", "[true]", "[\"1\"]", "[[1]]", "[null]", "{}",
                            "1", "[9223372036854775808]", "[99999999999999999999999]"}) {
    expect_header_refused('{' + entry("a", "U8", shape, "[0,1]") + '}', "'a': shape must be", "x");
  }
  for (const char* offsets : {"[0]", "[0,1,1]", "[]", "[1,0]", "[-1,0]", "[0,1.5]", "\"01\"",
                              "[0,18446744073709551616]", "[9223372036854775808,0]"}) {
    expect_header_refused('{' + entry("a", "U8", "[1]", offsets) + '}', "'a': data_offsets must be",
                          "x");
  }
}

TEST_F(SafetensorsTest, SpansMustBeThoseOfTypeAndShape) {
  expect_header_refused('{' + entry("a", "F32", "[2]", "[0,4]") + '}',
                        "span 4 bytes, F32 of shape [2] "
                        "needs 8",
                        "1234");
  expect_header_refused('{' + entry("a", "F32", "[0]", "[0,4]") + '}', "needs 0", "1234");
  expect_header_refused('{' + entry("a", "F4", "[3]", "[0,1]") + '}', "no size for the shape", "x");
  for (const char* shape : {"[4294967296,4294967296]", "[4611686018427387904,4]",
                            "[0,4611686018427387904,4]", "[9223372036854775807]"}) {
    expect_header_refused('{' + entry("a", "U16", shape, "[0,0]") + '}', "no size for the shape");
  }
}

TEST_F(SafetensorsTest, SpansMustCoverTheFileOnce) {
  const std::string a = entry("a", "U8", "[2]", "[0,2]");
  expect_header_refused('{' + a + ',' + entry("b", "U8", "[2]", "[1,3]") + '}',
                        "tensor 'b': starts at byte 1, inside", "xyz");
  expect_header_refused('{' + a + ',' + entry("b", "U8", "[2]", "[0,2]") + '}', "inside", "xy");
  expect_header_refused('{' + a + ',' + entry("b", "U8", "[1]", "[3,4]") + '}',
                        "tensor 'b': starts at byte 3, after a gap", "wxyz");
  expect_header_refused('{' + entry("a", "U8", "[1]", "[1,2]") + '}', "after a gap", "xy");
  expect_header_refused('{' + a + '}', "ends at byte 2 of 1 bytes of data: the file is truncated",
                        "x");
  expect_header_refused('{' + a + ',' + entry("b", "U8", "[0]", "[1,1]") + '}', "inside", "xy");
  const auto path = file('{' + a + ',' + entry("b", "U8", "[0]", "[2,2]") + '}', "xy");
  EXPECT_EQ(SafetensorsFile(path).tensors().size(), 2U);
}

TEST_F(SafetensorsTest, MessagesStayShortAndOnOneLine) {
  const std::string name(1'000'000, 'n');
  expect_header_refused("{\"" + name + "\":1}", "nnn...' must be an object");
  std::string shape(1'000'000, '1');
  for (std::size_t i = 1; i < shape.size(); i += 2) {
    shape[i] = ',';
  }
  const std::string path =
      file('{' + entry("a\\nb", "U8", '[' + shape + "1]", "[0,2]") + '}', "xy");
  try {
    const SafetensorsFile read(path);
    ADD_FAILURE() << "no error";
  } catch (const ValueError& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    EXPECT_LT(std::strlen(error.what()), 400U);
  }
}

TEST_F(SafetensorsTest, WhatIsNoFileIsRefused) {
  try {
    const SafetensorsFile read(scratch_ / "missing");
    ADD_FAILURE() << "no error";
  } catch (const IoError& error) {
    EXPECT_EQ(error.code(), ENOENT);
    EXPECT_NE(std::string(error.what()).find("missing: No such file"), std::string::npos);
  }
  PAPERLAB_EXPECT_THROW(SafetensorsFile{scratch_ / ""}, IoError, "Is a directory");
  PAPERLAB_EXPECT_THROW(SafetensorsFile{"/dev/null"}, ValueError, "/dev/null: is no regular file");
  PAPERLAB_EXPECT_THROW(SafetensorsFile{""}, ValueError, "must not be empty");
  PAPERLAB_EXPECT_THROW(SafetensorsFile{std::string("a\0b", 3)}, ValueError, "zero byte");
}

TEST_F(SafetensorsTest, AFileThatBecameShorterIsNoticed) {
  const std::string path = file(kTwo, std::string(26, 'x'));
  const SafetensorsFile read(path);
  std::filesystem::resize_file(path, read.file().num_bytes() - 10);
  std::string bytes(24, '\0');
  PAPERLAB_EXPECT_THROW(read.file().read({read.at("a").offset, 24, bytes.data()}), ValueError,
                        "ends at byte");
  PAPERLAB_EXPECT_THROW(read.file().read({{read.at("a").offset, 24, bytes.data()}}, ThreadPool(2)),
                        ValueError, path);
}

TEST_F(SafetensorsTest, MappedBytesCanBeChangedInMemoryOnly) {
  const std::string path = file(kTwo, std::string(26, 'x'));
  std::shared_ptr<Mapping> mapping;
  std::uint64_t offset = 0;
  {
    const SafetensorsFile read(path);
    mapping = read.file().map(true);
    offset = read.at("a").offset;
  }
  EXPECT_EQ(mapping->num_bytes(), raw_file(kTwo).size() + 26);
  EXPECT_EQ(mapping->data()[offset], std::byte{'x'});
  mapping->data()[offset] = std::byte{'y'};
  EXPECT_EQ(scratch_.read("file.safetensors"), raw_file(kTwo, std::string(26, 'x')));
  EXPECT_EQ(InputFile(scratch_.write("empty", "")).map()->data(), nullptr);
}

// Nothing is kept for copies that nobody makes: a file that the memory cannot hold is mapped too.
TEST_F(SafetensorsTest, AFileLargerThanTheMemoryIsMapped) {
  struct sysinfo machine{};
  ASSERT_EQ(sysinfo(&machine), 0);
  const std::uint64_t size =
      (machine.totalram + machine.totalswap) * machine.mem_unit + (1ULL << 30U);
  const std::string path = scratch_.write("sparse", "");
  std::error_code error;
  std::filesystem::resize_file(path, size, error);
  if (error) {
    GTEST_SKIP() << "this file system holds no file of " << size << " bytes";
  }
  const std::shared_ptr<Mapping> mapping = InputFile(path).map(true);
  mapping->data()[size - 1] = std::byte{'y'};
  EXPECT_EQ(mapping->data()[size - 1], std::byte{'y'});
  EXPECT_EQ(mapping->data()[size / 2], std::byte{0});
}

TEST_F(SafetensorsTest, ParallelReadsOfLargeRangesGetEveryByte) {
  std::string content;
  content.resize(20'000'001);
  for (std::size_t i = 0; i < content.size(); ++i) {
    content[i] = static_cast<char>(i % 251);
  }
  const InputFile input(scratch_.write("large", content));
  std::string a;
  a.resize(19'000'000, 'z');
  std::string b(1'000'000, 'z');
  input.read({{1, a.size(), a.data()}, {19'000'001, b.size(), b.data()}, {0, 0, nullptr}},
             ThreadPool(3));
  EXPECT_EQ(a, content.substr(1, a.size()));
  EXPECT_EQ(b, content.substr(19'000'001));
}

std::vector<TensorSpec> specs() {
  return {{"z", ElementType::kU8, {3}},
          {"b", ElementType::kF32, {2, 1}},
          {"a", ElementType::kF32, {}},
          {"e", ElementType::kF64, {0, 5}}};
}

TEST_F(SafetensorsTest, WriterMakesTheFilesBytesFromSpecsInAnyOrder) {
  auto write = [&](std::vector<TensorSpec> tensors) {
    SafetensorsWriter writer(scratch_ / "out", std::move(tensors), Metadata{{"k", "\"v\"\n"}});
    EXPECT_FALSE(scratch_.has("out"));
    EXPECT_TRUE(scratch_.has("out.tmp"));
    writer.append("b", "1234", 4);
    writer.append("z", "xyz", 3);
    writer.append("b", "5678", 4);
    writer.append("a", "abcd", 4);
    writer.finish();
    EXPECT_FALSE(scratch_.has("out.tmp"));
    std::string bytes = scratch_.read("out");
    std::filesystem::remove(scratch_ / "out");
    return bytes;
  };
  std::string header = R"({"__metadata__":{"k":"\"v\"\n"},)" + entry("e", "F64", "[0,5]", "[0,0]") +
                       ',' + entry("a", "F32", "[]", "[0,4]") + ',' +
                       entry("b", "F32", "[2,1]", "[4,12]") + ',' +
                       entry("z", "U8", "[3]", "[12,15]") + '}';
  header.append((8 - header.size() % 8) % 8, ' ');
  const std::string expected = raw_file(header, "abcd12345678xyz");
  EXPECT_EQ(write(specs()), expected);
  std::vector<TensorSpec> reversed = specs();
  std::swap(reversed.front(), reversed.back());
  EXPECT_EQ(write(reversed), expected);
}

TEST_F(SafetensorsTest, WriterRefusesWhatItCannotWriteBeforeAnyFileIsThere) {
  auto refused = [&](std::vector<TensorSpec> tensors, const std::string& part,
                     Metadata metadata = {}) {
    PAPERLAB_EXPECT_THROW(SafetensorsWriter(scratch_ / "out", std::move(tensors), metadata),
                          ValueError, part);
    EXPECT_FALSE(scratch_.has("out.tmp"));
  };
  const auto u8 = ElementType::kU8;
  refused({{"a", u8, {1}}, {"a", u8, {2}}}, "tensor 'a' is there twice");
  refused({{"__metadata__", u8, {1}}}, "must not have the name '__metadata__'");
  refused({{"\xFF", u8, {1}}}, "must be UTF-8");
  refused({}, "must be UTF-8", {{"k", "\xC0"}});
  refused({}, "must be UTF-8", {{"\x80", "v"}});
  refused({{"a", u8, {-1}}}, "'a': no size for the shape [-1]");
  refused({{"a", ElementType::kF64, {std::int64_t{1} << 62}}}, "'a': no size");
  const std::int64_t large = std::int64_t{1} << 61;
  refused({{"a", u8, {large}}, {"b", u8, {large}}, {"c", u8, {large}}, {"d", u8, {large}}},
          "too large for a file");
  std::string name;
  name.resize(100'000'000, 'n');
  refused({{name, u8, {1}}}, "the format allows 100000000");
}

TEST_F(SafetensorsTest, WriterRefusesTooManyAndTooFewBytes) {
  scratch_.write("out", "old");
  {
    SafetensorsWriter writer(scratch_ / "out", specs());
    PAPERLAB_EXPECT_THROW(writer.append("c", "", 0), ValueError, "'c' was not declared");
    writer.append("z", "xy", 2);
    PAPERLAB_EXPECT_THROW(writer.append("z", "xy", 2), ValueError, "'z' has 3 bytes, got 4");
    PAPERLAB_EXPECT_THROW(writer.finish(), ValueError, "'a' has 4 bytes, only 0 were written");
    EXPECT_TRUE(scratch_.has("out.tmp"));
  }
  EXPECT_FALSE(scratch_.has("out.tmp"));
  EXPECT_EQ(scratch_.read("out"), "old");
}

TEST_F(SafetensorsTest, WriterRefusesFoldersAtOnce) {
  std::filesystem::create_directories(scratch_ / "folder");
  PAPERLAB_EXPECT_THROW(SafetensorsWriter(scratch_ / "folder", specs()), IoError, "Is a directory");
  PAPERLAB_EXPECT_THROW(SafetensorsWriter(scratch_ / "none/out", specs()), IoError,
                        "none/out: No such");
  EXPECT_FALSE(scratch_.has("folder.tmp"));
}

TEST_F(SafetensorsTest, AFullDiskIsKnownBeforeTheFirstTensor) {
  const TensorSpec exabyte{"a", ElementType::kU8, {std::int64_t{1} << 60}};
  try {
    const SafetensorsWriter writer(scratch_ / "out", {exabyte});
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("out: "), std::string::npos);
    EXPECT_FALSE(scratch_.has("out.tmp"));
    return;
  }
  GTEST_SKIP() << "this file system cannot reserve space";
}

TEST(ElementTypeTest, NamesAndWidthsAreConsistent) {
  std::uint64_t bits = 0;
  for (int i = 0; i <= static_cast<int>(ElementType::kU64); ++i) {
    const auto type = static_cast<ElementType>(i);
    EXPECT_EQ(find_element_type(element_type_name(type)), type);
    EXPECT_TRUE(element_bits(type) >= bits || type <= ElementType::kU8);
    bits = element_bits(type);
  }
  EXPECT_EQ(find_element_type("F33"), std::nullopt);
  EXPECT_EQ(element_type_names().substr(0, 8), "BOOL, F4");
  EXPECT_EQ(tensor_bytes(ElementType::kF4, {2, 8}), 8U);
  EXPECT_EQ(tensor_bytes(ElementType::kF6E2M3, {4}), 3U);
  EXPECT_EQ(tensor_bytes(ElementType::kF6E2M3, {3}), std::nullopt);
  EXPECT_EQ(tensor_bytes(ElementType::kF64, {}), 8U);
}

}  // namespace
}  // namespace paperlab::io
