#include "paperlab/data/images.h"

#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/core/json.h"
#include "paperlab/data/manifest_internal.h"

namespace paperlab::data {
namespace {

// An array of bytes of so many dimensions, in row-major order.
io::NpyView view_bytes(const std::string& path, const io::Mapping& mapping, std::size_t num_dims) {
  io::NpyView view = io::view_npy(path, {mapping.data(), mapping.num_bytes()});
  if (view.type != io::ElementType::kU8) {
    throw DTypeError(path + ": must hold uint8, holds " + io::element_type_name(view.type));
  }
  if (view.shape.size() != num_dims || (view.is_fortran && num_dims > 1)) {
    throw ValueError(path + ": must have " + std::to_string(num_dims) +
                     " dimensions in row-major order");
  }
  return view;
}

}  // namespace

ImageFile::ImageFile(const std::string& images_path, const std::string& labels_path)
    : path_(images_path),
      image_mapping_(io::InputFile(images_path).map()),
      label_mapping_(io::InputFile(labels_path).map()),
      images_(view_bytes(images_path, *image_mapping_, 3)),
      labels_(view_bytes(labels_path, *label_mapping_, 1)) {
  if (height() < 1 || width() < 1) {
    throw ValueError(images_path + ": its pictures have no pixel");
  }
  if (labels_.shape[0] != num_images()) {
    throw ValueError(labels_path + ": has " + std::to_string(labels_.shape[0]) + " labels for " +
                     std::to_string(num_images()) + " pictures");
  }
}

std::span<const std::uint8_t> ImageFile::bytes_of(const io::NpyView& view) {
  return {reinterpret_cast<const std::uint8_t*>(view.bytes.data()), view.bytes.size()};
}

ImageFolder::ImageFolder(std::string folder) : folder_(std::move(folder)) {
  const std::string path = folder_ + "/manifest.json";
  try {
    read_manifest(path);
  } catch (const ValueError& error) {
    const std::string message = error.what();
    throw ValueError(message.starts_with(path) ? message : path + ": " + message);
  }
}

void ImageFolder::read_manifest(const std::string& path) {
  constexpr std::int64_t kMaxCount = std::int64_t{1} << 40;
  const Json content = read_json(path);
  const Json& record = manifest::member(manifest::member(content, "domains"), "images");
  content_ = manifest::path_part(manifest::text(record, "folder"));
  const Json& counts = manifest::member(record, "documents");
  for (const char* split : {"train", "valid", "test"}) {
    if (counts.contains(split)) {
      counts_[split] = manifest::integer(counts, split, 0, kMaxCount);
      splits_.emplace_back(split);
    }
  }
}

std::shared_ptr<const ImageFile> ImageFolder::open(const std::string& split) const {
  const auto found = counts_.find(split);
  if (found == counts_.end()) {
    std::string known;
    for (const std::string& name : splits_) {
      known += (known.empty() ? "" : ", ") + name;
    }
    throw ValueError(folder_ + ": has no split '" + split + "'; there are " + known);
  }
  const std::string path = folder_ + "/" + content_ + "/" + split;
  auto file = std::make_shared<const ImageFile>(path + "_images.npy", path + "_labels.npy");
  if (file->num_images() != found->second) {
    throw ValueError(file->path() + ": has " + std::to_string(file->num_images()) +
                     " pictures, the manifest says " + std::to_string(found->second));
  }
  return file;
}

}  // namespace paperlab::data
