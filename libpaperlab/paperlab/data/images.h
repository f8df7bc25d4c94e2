#pragma once
/// \file
/// Pictures with labels on disk: the folder of a recipe of `./paperlab data`, with manifest.json
/// and, for each split,
///
///     FOLDER/SPLIT_images.npy   uint8 [N, height, width]
///     FOLDER/SPLIT_labels.npy   uint8 [N]
///
/// where FOLDER is named in the manifest and holds a hash of its content.

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/io/file.h"
#include "paperlab/io/npy.h"

namespace paperlab::data {

/// The pictures of one split, memory-mapped. Safe to use from several threads.
class PAPERLAB_API ImageFile {
 public:
  /// \throws IoError     if a file cannot be read.
  /// \throws ValueError  "FILE: reason" if one is malformed or truncated, if pictures have no
  /// pixel,
  ///                     or if there are not as many labels as pictures.
  /// \throws DTypeError  if the elements are not bytes.
  ImageFile(const std::string& images_path, const std::string& labels_path);

  const std::string& path() const { return path_; }  ///< of the pictures
  std::int64_t num_images() const { return images_.shape[0]; }
  std::int64_t height() const { return images_.shape[1]; }
  std::int64_t width() const { return images_.shape[2]; }

  /// [num_images, height, width] row-major; lives as long as this.
  std::span<const std::uint8_t> pixels() const { return bytes_of(images_); }

  /// [num_images]; lives as long as this.
  std::span<const std::uint8_t> labels() const { return bytes_of(labels_); }

 private:
  static std::span<const std::uint8_t> bytes_of(const io::NpyView& view);

  std::string path_;
  std::shared_ptr<io::Mapping> image_mapping_;
  std::shared_ptr<io::Mapping> label_mapping_;
  io::NpyView images_;  // into the mappings
  io::NpyView labels_;
};

/// A recipe's folder.
class PAPERLAB_API ImageFolder {
 public:
  /// Reads the manifest.
  /// \throws IoError     if it cannot be read.
  /// \throws ValueError  "FOLDER/manifest.json: reason" if it is malformed or holds no pictures.
  explicit ImageFolder(std::string folder);

  const std::string& folder() const { return folder_; }

  /// Another word for other pictures, the same on every machine.
  const std::string& content() const { return content_; }

  /// Those of "train", "valid" and "test" that there are, in this order.
  const std::vector<std::string>& splits() const { return splits_; }

  /// Opens a split.
  /// \throws ValueError  if there is none of that name; the message lists those there are; if the
  ///                     manifest counts other than the files; errors of ImageFile too.
  std::shared_ptr<const ImageFile> open(const std::string& split) const;

 private:
  void read_manifest(const std::string& path);

  std::string folder_;
  std::string content_;
  std::vector<std::string> splits_;
  std::map<std::string, std::int64_t> counts_;
};

}  // namespace paperlab::data
