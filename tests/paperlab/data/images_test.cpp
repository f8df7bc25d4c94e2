#include "paperlab/data/images.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/core/json.h"
#include "tests/paperlab/data/token_files.h"

namespace paperlab::data {
namespace {

using io::ElementType;

class ImageFolderTest : public testing::Test {
 protected:
  // `count` pictures of 2 x 3 pixels, whose bytes count up.
  void write_split(const std::string& split, std::int64_t count) const {
    std::vector<std::uint8_t> pixels(static_cast<std::size_t>(count) * 6);
    for (std::size_t i = 0; i < pixels.size(); ++i) {
      pixels[i] = static_cast<std::uint8_t>(i);
    }
    io::NpyArray images = array_of(ElementType::kU8, pixels);
    images.shape = {count, 2, 3};
    write(split + "_images", images);
    write(split + "_labels", array_of(ElementType::kU8, std::vector<std::uint8_t>(
                                                            static_cast<std::size_t>(count), 7)));
  }

  void write(const std::string& name, const io::NpyArray& array) const {
    scratch_.write("images-abc/keep", "");
    io::write_npy(scratch_ / ("images-abc/" + name + ".npy"), array);
  }

  void write_manifest(const Json& documents) const {
    scratch_.write(
        "manifest.json",
        Json{{"recipe", "made-up"},
             {"domains", {{"images", {{"folder", "images-abc"}, {"documents", documents}}}}}}
            .dump());
  }

  std::string folder() const { return scratch_ / ""; }

  experiments::Scratch scratch_;
};

TEST_F(ImageFolderTest, HasThePicturesOfEachSplit) {
  write_split("train", 5);
  write_split("test", 2);
  write_manifest({{"test", 2}, {"train", 5}});
  const ImageFolder images(folder());
  EXPECT_EQ(images.content(), "images-abc");
  EXPECT_EQ(images.splits(), (std::vector<std::string>{"train", "test"}));
  const auto train = images.open("train");
  EXPECT_EQ(train->num_images(), 5);
  EXPECT_EQ(train->height(), 2);
  EXPECT_EQ(train->width(), 3);
  ASSERT_EQ(train->pixels().size(), 30U);
  EXPECT_EQ(train->pixels()[29], 29);
  ASSERT_EQ(train->labels().size(), 5U);
  EXPECT_EQ(train->labels()[4], 7);
  EXPECT_EQ(images.open("test")->num_images(), 2);
}

TEST_F(ImageFolderTest, AnEmptySplitIsOne) {
  write_split("valid", 0);
  write_manifest({{"valid", 0}});
  EXPECT_TRUE(ImageFolder(folder()).open("valid")->labels().empty());
}

TEST_F(ImageFolderTest, OtherManifestsAreRefused) {
  PAPERLAB_EXPECT_THROW(ImageFolder(scratch_ / "none"), IoError, "none/manifest.json");
  for (const auto& [text, reason] :
       {std::pair("{", "manifest.json: "), std::pair("[]", "'domains' is missing"),
        std::pair(R"({"domains": {"en": {}}})", "'images' is missing"),
        std::pair(R"({"domains": {"images": {"missing": "no network"}}})", "'folder' is missing"),
        std::pair(R"({"domains": {"images": {"folder": "../x", "documents": {}}}})", "names must"),
        std::pair(R"({"domains": {"images": {"folder": "x", "documents": {"test": -1}}}})",
                  "'test' must be in")}) {
    scratch_.write("manifest.json", text);
    PAPERLAB_EXPECT_THROW(ImageFolder{folder()}, ValueError, reason);
  }
}

TEST_F(ImageFolderTest, FilesThatDoNotFitAreRefused) {
  write_split("train", 5);
  write_manifest({{"train", 4}});
  const ImageFolder images(folder());
  PAPERLAB_EXPECT_THROW(images.open("test"), ValueError, "has no split 'test'; there are train");
  PAPERLAB_EXPECT_THROW(images.open("train"), ValueError, "has 5 pictures, the manifest says 4");
  write("train_labels", array_of(ElementType::kU8, std::vector<std::uint8_t>(4)));
  PAPERLAB_EXPECT_THROW(images.open("train"), ValueError, "has 4 labels for 5 pictures");
  write("train_labels", array_of(ElementType::kU16, std::vector<std::uint16_t>(5)));
  PAPERLAB_EXPECT_THROW(images.open("train"), DTypeError, "train_labels.npy: must hold uint8");
  write("train_labels", array_of(ElementType::kU8, std::vector<std::uint8_t>(5)));
  write("train_images", array_of(ElementType::kU8, std::vector<std::uint8_t>(5)));
  PAPERLAB_EXPECT_THROW(images.open("train"), ValueError, "must have 3 dimensions");
  io::NpyArray none = array_of(ElementType::kU8, std::vector<std::uint8_t>());
  none.shape = {5, 0, 3};
  write("train_images", none);
  PAPERLAB_EXPECT_THROW(images.open("train"), ValueError, "its pictures have no pixel");
  scratch_.write("images-abc/train_images.npy", "\x93NUMPY");
  PAPERLAB_EXPECT_THROW(images.open("train"), ValueError, "train_images.npy: ");
}

}  // namespace
}  // namespace paperlab::data
