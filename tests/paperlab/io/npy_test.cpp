#include "paperlab/io/npy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "paperlab/core/error.h"
#include "tests/experiments/scratch.h"

namespace paperlab::io {
namespace {

using experiments::Scratch;

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

// A file of format 1 with this header, as it is.
std::string raw_npy(const std::string& header, const std::string& data = "") {
  return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(header.size() & 0xFF) +
         static_cast<char>(header.size() >> 8) + header + data;
}

NpyArray parse(const std::string& file) { return parse_npy("x.npy", bytes_of(file)); }

NpyArray bytes_array(const std::string& text) {
  return {ElementType::kU8, {static_cast<std::int64_t>(text.size())}, false, bytes_of(text)};
}

TEST(NpyTest, ReadsWhatNumpyWrites) {
  // numpy.save of numpy.array([[1, 2, 3]], '<i2').
  const std::string header =
      "{'descr': '<i2', 'fortran_order': False, 'shape': (1, 3), }" + std::string(58, ' ') + '\n';
  const NpyArray array = parse(raw_npy(header, std::string("\1\0\2\0\3\0", 6)));
  EXPECT_EQ(array.type, ElementType::kI16);
  EXPECT_EQ(array.shape, (std::vector<std::int64_t>{1, 3}));
  EXPECT_FALSE(array.is_fortran);
  EXPECT_EQ(array.bytes, bytes_of(std::string_view("\1\0\2\0\3\0", 6)));
}

TEST(NpyTest, ReadsOtherSpellingsOfTheHeader) {
  const NpyArray a =
      parse(raw_npy("{\"shape\":(2,),'fortran_order':True , 'descr' : \"|u1\"}", "xy"));
  EXPECT_EQ(a.shape, std::vector<std::int64_t>{2});
  EXPECT_TRUE(a.is_fortran);
  EXPECT_TRUE(
      parse(raw_npy("{'descr':'<f8','fortran_order':False,'shape':()}", "12345678")).shape.empty());
  EXPECT_EQ(parse(raw_npy("{'descr':'<u1','fortran_order':False,'shape':(1)}", "x")).type,
            ElementType::kU8);
}

TEST(NpyTest, MalformedFilesAreRefused) {
  auto refused = [](const std::string& file, const std::string& part) {
    PAPERLAB_EXPECT_THROW(parse(file), ValueError, part);
    PAPERLAB_EXPECT_THROW(parse(file), ValueError, "x.npy: ");
  };
  const std::string good = "{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }";
  const std::string whole = raw_npy(good, "xy");
  for (std::size_t size = 0; size < whole.size(); ++size) {
    refused(whole.substr(0, size), "");
  }
  refused(whole + "z", "has 3 bytes of data, U8 of shape [2] needs 2");
  refused("PK" + whole, "is no .npy file");
  refused(std::string("\x93NUMPY\x04\x00", 8) + whole.substr(8), ".npy format 4");
  refused(raw_npy(good + "x", "xy"), "text follows");
  refused(raw_npy("{'descr': '|u1', 'shape': (2,)}", "xy"), "needs the keys");
  refused(raw_npy("{'descr': '|u1', 'descr': '|u1'}", "xy"), "'descr' is there twice");
  refused(raw_npy("{'more': 1}"), "unknown key 'more'");
  refused(raw_npy("{'descr': __import__('os')}"), "a quoted string is missing");
  refused(raw_npy("{'desc\\x72': '|u1'}"), "a string does not end");
  refused(raw_npy("{'fortran_order': 1}"), "must be True or False");
  for (const char* shape : {"(-1,)", "(1.0,)", "(9223372036854775808,)", "(x)", "(1"}) {
    refused(raw_npy("{'shape': " + std::string(shape)), "header: ");
  }
  refused(raw_npy("{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296,4294967296)}"),
          "needs more than a file can hold");
}

TEST(NpyTest, OtherElementsAreRefused) {
  for (const char* descr :
       {"'>f4'", "'|O'", "'<U3'", "'|S2'", "'<M8[s]'", "'<c16'", "'<f16'", "[('x', '<f4')]"}) {
    PAPERLAB_EXPECT_THROW(parse(raw_npy("{'descr': " + std::string(descr) + "}")), DTypeError,
                          "x.npy: elements");
  }
}

TEST(NpyTest, WritesWhatItReads) {
  const Scratch scratch;
  for (const ElementType type : {ElementType::kBool, ElementType::kF16, ElementType::kF32,
                                 ElementType::kC64, ElementType::kU64}) {
    for (const std::vector<std::int64_t>& shape :
         {std::vector<std::int64_t>{}, {3}, {0, 2}, {2, 1, 3}}) {
      NpyArray array{type, shape, shape.size() == 3, {}};
      array.bytes.resize(tensor_bytes(type, shape).value_or(0), std::byte{1});
      write_npy(scratch / "a.npy", array);
      const NpyArray again = read_npy(scratch / "a.npy");
      EXPECT_EQ(again.type, type);
      EXPECT_EQ(again.shape, shape);
      EXPECT_EQ(again.is_fortran, array.is_fortran);
      EXPECT_EQ(again.bytes, array.bytes);
      EXPECT_EQ((scratch.read("a.npy").size() - array.bytes.size()) % 64, 0U);
    }
  }
  PAPERLAB_EXPECT_THROW(write_npy(scratch / "b", {ElementType::kBF16, {1}, false, bytes_of("xy")}),
                        DTypeError, "NumPy has no type BF16");
  PAPERLAB_EXPECT_THROW(write_npy(scratch / "b", {ElementType::kU8, {1}, false, bytes_of("xy")}),
                        ValueError, "cannot have 2 bytes");
  EXPECT_FALSE(scratch.has("b") || scratch.has("b.tmp"));
}

TEST(NpyTest, RowMajorTurnsTheOrderAround) {
  NpyArray fortran{ElementType::kU8, {2, 3}, true, bytes_of("adbecf")};
  EXPECT_EQ(row_major(fortran).bytes, bytes_of("abcdef"));
  EXPECT_FALSE(row_major(fortran).is_fortran);
  fortran = {ElementType::kU16, {2, 1, 2}, true, bytes_of("AaBbCcDd")};
  EXPECT_EQ(row_major(fortran).bytes, bytes_of("AaCcBbDd"));
  EXPECT_EQ(row_major(bytes_array("xyz")).bytes, bytes_of("xyz"));
}

class NpzTest : public testing::Test {
 protected:
  std::string archive() const {
    write_npz(scratch_ / "a.npz", {{"b", bytes_array("hello")}, {"folder/a", bytes_array("")}});
    return scratch_.read("a.npz");
  }

  static std::map<std::string, NpyArray> parse(const std::string& file) {
    return parse_npz("x.npz", bytes_of(file));
  }

  Scratch scratch_;
};

TEST_F(NpzTest, WritesWhatItReads) {
  const std::string file = archive();
  const auto arrays = read_npz(scratch_ / "a.npz");
  ASSERT_EQ(arrays.size(), 2U);
  EXPECT_EQ(arrays.at("b").bytes, bytes_of("hello"));
  EXPECT_TRUE(arrays.at("folder/a").bytes.empty());
  EXPECT_EQ(file.find("hello") % 64, 0U);
  EXPECT_EQ(archive(), file);
  write_npz(scratch_ / "empty.npz", {});
  EXPECT_TRUE(read_npz(scratch_ / "empty.npz").empty());
}

TEST_F(NpzTest, MalformedArchivesAreRefused) {
  const std::string file = archive();
  for (std::size_t size = 0; size < file.size(); ++size) {
    PAPERLAB_EXPECT_THROW(parse(file.substr(0, size)), ValueError, "x.npz: ");
  }
  EXPECT_EQ(parse(std::string(file)).size(), 2U);
  std::string wrong = file;
  wrong[file.find("hello")] = 'j';
  PAPERLAB_EXPECT_THROW(parse(wrong), ValueError, "'b.npy' has a wrong checksum");
  wrong = file;
  const std::size_t entry = file.find("PK\1\2");
  wrong[entry + 10] = 8;
  PAPERLAB_EXPECT_THROW(parse(wrong), UnsupportedError, "'b.npy' is compressed or encrypted");
  wrong = file;
  wrong[entry + 8] = 1;
  PAPERLAB_EXPECT_THROW(parse(wrong), UnsupportedError, "encrypted");
  wrong = file;
  wrong.replace(file.find("PK\5\6") + 10, 2, std::string("\3\0", 2));
  PAPERLAB_EXPECT_THROW(parse(wrong), ValueError, "malformed");
}

TEST_F(NpzTest, AMemberThatIsNoArrayIsNamed) {
  std::string file = archive();
  PAPERLAB_EXPECT_THROW(write_npz(scratch_ / "a.npz", {{"", bytes_array("x")}}), ValueError,
                        "must have 1 to");
  EXPECT_EQ(scratch_.read("a.npz"), file);
  EXPECT_FALSE(scratch_.has("a.npz.tmp"));
}

}  // namespace
}  // namespace paperlab::io
