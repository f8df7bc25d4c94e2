#include "paperlab/nn/save.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/io/file.h"
#include "paperlab/nn/weights_internal.h"

namespace paperlab::nn {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kPieceBytes = std::int64_t{16} << 20;  // of tensors that must be copied
constexpr const char* kGenerationName = "generation_config.json";

/// A directory that is there; what was made of its path goes again unless it is kept.
class NewDirectory {
 public:
  explicit NewDirectory(const std::string& path) {
    std::error_code error;
    for (fs::path part = fs::path(path); !part.empty() && !fs::exists(part, error);
         part = part.parent_path()) {
      made_.push_back(part);
      if (part == part.parent_path()) {
        break;
      }
    }
    error.clear();
    fs::create_directories(path, error);
    if (!error && !fs::is_directory(path)) {
      error = std::make_error_code(std::errc::not_a_directory);
    }
    if (error) {
      remove();
      throw IoError(path + ": " + error.message(), error.value());
    }
  }
  ~NewDirectory() { remove(); }
  NewDirectory(const NewDirectory&) = delete;
  NewDirectory& operator=(const NewDirectory&) = delete;

  void keep() { made_.clear(); }

 private:
  void remove() {
    for (const fs::path& part : made_) {  // the innermost first; only empty ones go
      std::error_code error;
      fs::remove(part, error);
    }
  }

  std::vector<fs::path> made_;
};

/// Small files that get their names together.
class OtherFiles {
 public:
  explicit OtherFiles(std::string directory) : directory_(std::move(directory)) {}

  void write_json(const char* name, const Json& value) {
    const std::string text = format_json(value);
    add(name, text.size()).write(0, text.data(), text.size());
  }

  // Nothing to do if it is there already.
  void copy(const std::string& path) {
    const fs::path target = fs::path(directory_) / fs::path(path).filename();
    std::error_code error;
    if (fs::equivalent(path, target, error)) {
      return;
    }
    const io::InputFile source(path);
    io::AtomicFile& file = add(target.filename().string(), source.num_bytes());
    std::vector<std::byte> piece(std::min(source.num_bytes(), std::uint64_t{kPieceBytes}));
    for (std::uint64_t done = 0; done < source.num_bytes(); done += piece.size()) {
      const std::uint64_t count = std::min<std::uint64_t>(piece.size(), source.num_bytes() - done);
      source.read({done, count, piece.data()});
      file.write(done, piece.data(), count);
    }
  }

  void sync() {
    for (const auto& file : files_) {
      file->sync();
    }
  }

  void finish() {
    for (const auto& file : files_) {
      file->finish();
    }
  }

 private:
  io::AtomicFile& add(const std::string& name, std::uint64_t num_bytes) {
    const std::string path = directory_ + '/' + name;
    for (const auto& file : files_) {
      if (file->path() == path) {
        throw ValueError("nn::save: the file name " + io::quoted_name(name) + " comes twice");
      }
    }
    files_.push_back(std::make_unique<io::AtomicFile>(path, num_bytes));
    return *files_.back();
  }

  std::string directory_;
  std::vector<std::unique_ptr<io::AtomicFile>> files_;
};

// The tensors by their names in files; a parameter can have several.
std::map<std::string, at::Tensor> named_for_files(const SaveRequest& request) {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, tensor] : request.tensors) {
    require<ValueError>(tensor.defined() && tensor.layout() == at::kStrided && !tensor.is_meta(),
                        "nn::save", "tensor " + io::quoted_name(name) + " must be strided",
                        "another form");
    require<ValueError>(find_type(tensor.scalar_type()) != nullptr, "nn::save",
                        "tensor " + io::quoted_name(name) + " must be " + type_names(),
                        at::toString(tensor.scalar_type()));
    const auto names = request.file_names.find(name);
    const std::vector<std::string> own = {name};
    for (const std::string& file_name : names == request.file_names.end() ? own : names->second) {
      if (!tensors.emplace(file_name, tensor.detach()).second) {
        throw ValueError("nn::save: tensor " + io::quoted_name(file_name) + " is there twice");
      }
    }
  }
  return tensors;
}

std::vector<io::TensorSpec> specs_of(const std::map<std::string, at::Tensor>& tensors) {
  std::vector<io::TensorSpec> specs;
  specs.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) {
    specs.push_back({name, find_type(tensor.scalar_type())->element, tensor.sizes().vec()});
  }
  return specs;
}

// Row by row where the memory is not already as the file's.
void write_tensor(const std::string& name, const at::Tensor& tensor, io::CheckpointWriter& writer) {
  if (tensor.numel() == 0) {
    return;
  }
  const bool is_ready = tensor.is_contiguous() && tensor.device().is_cpu() && !tensor.is_neg();
  if (is_ready || tensor.dim() == 0) {
    const at::Tensor ready = is_ready ? tensor : tensor.cpu().resolve_neg();
    writer.append(name, ready.const_data_ptr(), ready.nbytes());
    return;
  }
  const std::int64_t rows = tensor.size(0);
  const std::int64_t row_bytes = tensor.numel() / rows * tensor.element_size();
  const std::int64_t step = std::max<std::int64_t>(1, kPieceBytes / row_bytes);
  for (std::int64_t begin = 0; begin < rows; begin += step) {
    const at::Tensor piece =
        tensor.narrow(0, begin, std::min(step, rows - begin)).cpu().resolve_neg().contiguous();
    writer.append(name, piece.const_data_ptr(), piece.nbytes());
  }
}

class Safetensors final : public WeightFiles {
 public:
  Safetensors(std::string directory, std::uint64_t max_shard_bytes)
      : directory_(std::move(directory)), max_shard_bytes_(max_shard_bytes) {}

  void write(const std::map<std::string, at::Tensor>& tensors) override {
    writer_.emplace(directory_, specs_of(tensors), io::Metadata{{"format", "pt"}},
                    max_shard_bytes_);
    for (const io::TensorEntry& entry : writer_->tensors()) {
      write_tensor(entry.name, tensors.at(entry.name), *writer_);
    }
    writer_->sync();
  }

  void finish() override { writer_->finish(); }
  void discard() noexcept override { writer_.reset(); }

 private:
  std::string directory_;
  std::uint64_t max_shard_bytes_;
  std::optional<io::CheckpointWriter> writer_;
};

// While the directory is still there, which goes too if it is new.
struct Discard {
  explicit Discard(WeightFiles& of) : files(of) {}
  ~Discard() { files.discard(); }
  Discard(const Discard&) = delete;
  Discard& operator=(const Discard&) = delete;

  WeightFiles& files;
};

// One of an earlier checkpoint would give this one other ids of the end.
void remove_generation_config(const std::string& directory) {
  std::error_code error;
  fs::remove(fs::path(directory) / kGenerationName, error);
  if (error) {
    throw IoError(directory + '/' + kGenerationName + ": " + error.message(), error.value());
  }
}

}  // namespace

void save(const SaveRequest& request) {
  Safetensors files(request.directory, request.max_shard_bytes);
  save(request, files);
}

void save(const SaveRequest& request, WeightFiles& files) {
  const auto tensors = named_for_files(request);
  NewDirectory directory(request.directory);
  OtherFiles others(request.directory);
  const Discard discard(files);
  others.write_json("config.json", request.config);
  if (request.generation_config) {
    others.write_json(kGenerationName, *request.generation_config);
  }
  for (const std::string& path : request.files) {
    others.copy(path);
  }
  files.write(tensors);
  others.sync();
  files.finish();
  others.finish();
  if (!request.generation_config) {
    remove_generation_config(request.directory);
  }
  directory.keep();
}

}  // namespace paperlab::nn
