// Mapped files: what comes back when pages have been released.
#include "paperlab/io/file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <memory>
#include <string>

namespace paperlab::io {
namespace {

/// A file of three pages and a half.
class Released : public testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(path_, std::ios::binary) << std::string(page_ * 7 / 2, 'a');
  }
  void TearDown() override { unlink(path_.c_str()); }

  std::shared_ptr<Mapping> map(bool is_writable) const { return InputFile(path_).map(is_writable); }

  std::uint64_t page_ = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));

 private:
  std::string path_ = testing::TempDir() + "released." + std::to_string(getpid());
};

TEST_F(Released, BytesOfAFileThatIsReadOnlyComeBack) {
  const auto mapping = map(false);
  for (std::uint64_t offset = 0; offset < mapping->num_bytes(); offset += 100) {
    mapping->release(offset, page_);
    mapping->release(0, mapping->num_bytes());
    ASSERT_EQ(mapping->data()[offset], std::byte{'a'});
  }
}

TEST_F(Released, PagesThatHoldOtherBytesStay) {
  const auto mapping = map(true);
  for (std::uint64_t offset = 0; offset < mapping->num_bytes(); ++offset) {
    mapping->data()[offset] = std::byte{'b'};
  }
  mapping->release(page_ / 2, page_ * 2);  // page 1 is the only one that is whole
  for (std::uint64_t offset = 0; offset < mapping->num_bytes(); ++offset) {
    const char wanted = offset / page_ == 1 ? 'a' : 'b';
    ASSERT_EQ(static_cast<char>(mapping->data()[offset]), wanted) << offset;
  }
}

TEST_F(Released, TheLastPageEndsWithTheFile) {
  const auto mapping = map(true);
  mapping->data()[page_ * 3] = std::byte{'b'};
  mapping->release(page_ * 3, page_ / 4);  // a part of what the page holds
  EXPECT_EQ(mapping->data()[page_ * 3], std::byte{'b'});
  mapping->release(page_ * 3, page_ / 2);
  EXPECT_EQ(mapping->data()[page_ * 3], std::byte{'a'});
  mapping->release(mapping->num_bytes(), 0);
  mapping->release(mapping->num_bytes() * 2, page_);
  mapping->release(0, UINT64_MAX);
  EXPECT_EQ(mapping->data()[0], std::byte{'a'});
}

}  // namespace
}  // namespace paperlab::io
