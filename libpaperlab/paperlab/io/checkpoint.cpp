#include "paperlab/io/checkpoint.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/core/json.h"

namespace paperlab::io {
namespace {

constexpr const char* kSingleName = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr std::uint64_t kMaxIndexBytes = 100'000'000;  // as a header's
constexpr int kMaxDepth = 64;

bool exists(const std::string& path) {
  struct stat status{};
  return stat(path.c_str(), &status) == 0;
}

// A plain name: a folder in it could lead out of the directory.
bool is_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
}

// Refuses what parsing alone lets pass: a key that comes twice in an object, and a deep nesting.
class KeyCheck {
 public:
  explicit KeyCheck(const std::string& source) : source_(source) {}

  bool operator()(int depth, Json::parse_event_t event, const Json& value) {
    if (depth > kMaxDepth) {
      throw ValueError(source_ + ": nested more than " + std::to_string(kMaxDepth) + " deep");
    }
    const auto level = static_cast<std::size_t>(depth);
    if (event == Json::parse_event_t::object_start) {
      keys_.resize(std::max(keys_.size(), level + 2));
      keys_[level + 1].clear();
    } else if (event == Json::parse_event_t::key &&
               !keys_[level].emplace(value.get<std::string>(), true).second) {
      throw ValueError(source_ + ": " + quoted_name(value.get<std::string>()) + " is there twice");
    }
    return true;
  }

 private:
  const std::string& source_;
  std::vector<std::unordered_map<std::string, bool>> keys_;  // by depth
};

Json parse_json(const std::string& source, std::string_view text) {
  KeyCheck check(source);
  if (text.find('\0') != std::string_view::npos) {  // the parser would stop there, content
    throw ValueError(source + ": not JSON at byte " + std::to_string(text.find('\0') + 1));
  }
  try {
    return Json::parse(text, [&](int depth, Json::parse_event_t event, const Json& value) {
      return check(depth, event, value);
    });
  } catch (const Json::parse_error& error) {
    throw ValueError(source + ": not JSON at byte " + std::to_string(error.byte));
  } catch (const Json::out_of_range&) {
    throw ValueError(source + ": a number is out of range");
  }
}

std::string read_text(const std::string& path) {
  const InputFile file(path);
  if (file.num_bytes() > kMaxIndexBytes) {
    throw ValueError(path + ": has " + std::to_string(file.num_bytes()) + " bytes; at most " +
                     std::to_string(kMaxIndexBytes) + " are read");
  }
  std::string text(file.num_bytes(), '\0');
  file.read({0, text.size(), text.data()});
  return text;
}

// The tensors of each shard, filled greedily in the order of names.
std::vector<std::vector<TensorSpec>> split(const std::string& directory,
                                           std::vector<TensorSpec> tensors,
                                           std::uint64_t max_shard_bytes) {
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorSpec& a, const TensorSpec& b) { return a.name < b.name; });
  std::vector<std::vector<TensorSpec>> shards(1);
  std::uint64_t filled = 0;
  for (TensorSpec& tensor : tensors) {
    const std::optional<std::uint64_t> num_bytes = tensor_bytes(tensor.type, tensor.shape);
    if (!num_bytes) {
      throw ValueError(directory + ": tensor " + quoted_name(tensor.name) + " is too large");
    }
    if (!shards.back().empty() &&
        (filled > max_shard_bytes || *num_bytes > max_shard_bytes - filled)) {
      shards.emplace_back();
      filled = 0;
    }
    filled += *num_bytes;
    shards.back().push_back(std::move(tensor));
  }
  return shards;
}

std::string shard_name(std::size_t number, std::size_t count) {
  std::array<char, 96> name{};
  std::snprintf(name.data(), name.size(), "model-%05zu-of-%05zu.safetensors", number + 1, count);
  return name.data();
}

// model-<digits>-of-<digits>.safetensors
bool is_shard_name(std::string_view name) {
  constexpr std::string_view kParts[] = {"model-", "-of-", ".safetensors"};
  for (const std::string_view part : kParts) {
    if (!name.starts_with(part)) {
      return false;
    }
    name.remove_prefix(part.size());
    if (part != kParts[2]) {
      const std::size_t digits = std::min(name.find_first_not_of("0123456789"), name.size());
      name.remove_prefix(digits);
      if (digits == 0) {
        return false;
      }
    }
  }
  return name.empty();
}

// Other readers (transformers) take all tensors of all shards, whatever the index says, so one that
// it doesn't list there could give other numbers than here.
void check_listed(const SafetensorsFile& shard, const std::string& index_path,
                  const std::map<std::string, Checkpoint::Location>& tensors) {
  for (const TensorEntry& entry : shard.tensors()) {
    const auto listed = tensors.find(entry.name);
    if (listed == tensors.end() || listed->second.file != &shard) {
      throw ValueError(shard.path() + ": tensor " + quoted_name(entry.name) + " must be as in " +
                       index_path + ", which " +
                       (listed == tensors.end() ? "does not list it"
                                                : "has it in " + listed->second.file->path()));
    }
  }
}

}  // namespace

std::map<std::string, std::string> parse_shard_index(const std::string& source,
                                                     std::string_view text) {
  const Json index = parse_json(source, text);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    throw ValueError(source + ": must be an object with an object 'weight_map'");
  }
  std::map<std::string, std::string> files;
  for (const auto& [name, file] : index["weight_map"].items()) {
    if (!file.is_string() || !is_file_name(file.get_ref<const std::string&>())) {
      throw ValueError(source + ": the file of tensor " + quoted_name(name) +
                       " must be a name without a folder, got " +
                       quoted_name(file.is_string() ? file.get<std::string>() : file.type_name()));
    }
    files.emplace(name, file.get<std::string>());
  }
  if (files.empty()) {
    throw ValueError(source + ": 'weight_map' is empty");
  }
  return files;
}

Checkpoint::Checkpoint(const std::string& directory) : directory_(directory) {
  const std::string index_path = directory + '/' + kIndexName;
  if (exists(directory + '/' + kSingleName) || !exists(index_path)) {
    files_.emplace_back(directory + '/' + kSingleName);
    for (const TensorEntry& entry : files_[0].tensors()) {
      tensors_.emplace(entry.name, Location{files_.data(), &entry});
    }
    return;
  }
  const auto file_of = parse_shard_index(index_path, read_text(index_path));
  std::map<std::string, std::size_t> numbers;
  for (const auto& [name, file] : file_of) {
    if (numbers.try_emplace(file, numbers.size()).second) {
      std::string path = directory + '/';
      files_.emplace_back(path += file);
    }
  }
  for (const auto& [name, file] : file_of) {
    const SafetensorsFile& shard = files_[numbers.at(file)];
    tensors_.emplace(name, Location{&shard, &shard.at(name)});
  }
  for (const SafetensorsFile& shard : files_) {
    check_listed(shard, index_path, tensors_);
  }
}

const Checkpoint::Location& Checkpoint::at(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    throw ValueError(directory_ + ": has no tensor " + quoted_name(name));
  }
  return found->second;
}

CheckpointWriter::CheckpointWriter(std::string directory, std::vector<TensorSpec> tensors,
                                   const std::optional<Metadata>& metadata,
                                   std::uint64_t max_shard_bytes)
    : directory_(std::move(directory)) {
  auto shards = split(directory_, std::move(tensors), max_shard_bytes);
  for (std::size_t i = 0; i < shards.size(); ++i) {
    for (const TensorSpec& tensor : shards[i]) {
      if (!file_of_.emplace(tensor.name, i).second) {
        throw ValueError(directory_ + ": tensor " + quoted_name(tensor.name) + " is there twice");
      }
    }
    names_.push_back(shards.size() == 1 ? kSingleName : shard_name(i, shards.size()));
    files_.emplace_back(directory_ + '/' + names_.back(), std::move(shards[i]), metadata);
    for (const TensorEntry& entry : files_.back().tensors()) {
      total_bytes_ += entry.num_bytes;
    }
  }
  if (files_.size() > 1) {
    write_index();
  }
}

std::vector<TensorEntry> CheckpointWriter::tensors() const {
  std::vector<TensorEntry> all;
  for (const SafetensorsWriter& file : files_) {
    all.insert(all.end(), file.tensors().begin(), file.tensors().end());
  }
  return all;
}

void CheckpointWriter::append(const std::string& name, const void* data, std::uint64_t num_bytes) {
  const auto found = file_of_.find(name);
  if (found == file_of_.end()) {
    throw ValueError(directory_ + ": tensor " + quoted_name(name) + " was not declared");
  }
  files_[found->second].append(name, data, num_bytes);
}

void CheckpointWriter::sync() {
  for (SafetensorsWriter& file : files_) {
    file.sync();
  }
  if (index_ != nullptr) {
    index_->sync();
  }
}

void CheckpointWriter::finish() {
  sync();  // what can fail fails before the first name changes
  for (SafetensorsWriter& file : files_) {
    file.finish();
  }
  if (index_ != nullptr) {
    index_->finish();
  }
  remove_others();
}

void CheckpointWriter::write_index() {
  Json weight_map = Json::object();
  for (const auto& [tensor, file] : file_of_) {
    weight_map[tensor] = names_[file];
  }
  const std::string text = format_json(
      {{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", std::move(weight_map)}});
  index_ = std::make_unique<AtomicFile>(directory_ + '/' + kIndexName, text.size());
  index_->write(0, text.data(), text.size());
}

// A reader would take an old model.safetensors before the new shards.
void CheckpointWriter::remove_others() const {
  std::error_code error;
  for (const auto& item : std::filesystem::directory_iterator(directory_, error)) {
    const std::string name = item.path().filename().string();
    const bool is_ours = std::find(names_.begin(), names_.end(), name) != names_.end() ||
                         (files_.size() > 1 && name == kIndexName);
    if (!is_ours && (name == kSingleName || name == kIndexName || is_shard_name(name))) {
      std::filesystem::remove(item.path(), error);
      if (error) {
        throw IoError(item.path().string() + ": " + error.message(), error.value());
      }
    }
  }
}

}  // namespace paperlab::io
