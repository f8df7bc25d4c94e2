#include <sys/stat.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>

#include "paperlab/core/error.h"
#include "paperlab/nn/hf_config.h"

namespace paperlab::nn {
namespace {

bool exists(const std::string& path) {
  struct stat status{};
  return stat(path.c_str(), &status) == 0;
}

// Pipes and devices may never end.
void check_is_file(const std::string& path) {
  constexpr std::int64_t kMostBytes = std::int64_t{100} << 20;
  struct stat status{};
  const bool is_file = stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
  require<ValueError>(is_file && status.st_size <= kMostBytes, path.c_str(),
                      "a regular file of at most 100 MiB",
                      is_file ? std::to_string(status.st_size) + " bytes" : "something else");
}

}  // namespace

HfDirectory read_hf_files(const std::string& path) {
  if (!exists(path)) {
    throw IoError(path + ": " + std::strerror(ENOENT), ENOENT);
  }
  const std::string config_path = path + "/config.json";
  if (!exists(config_path)) {
    throw IoError(config_path + ": " + std::strerror(ENOENT) +
                      "; a model's directory has config.json and model.safetensors",
                  ENOENT);
  }
  check_is_file(config_path);
  HfDirectory directory{path, read_json(config_path), std::nullopt, {}, {}};
  const std::string generation_path = path + "/generation_config.json";
  if (exists(generation_path)) {
    check_is_file(generation_path);
    directory.generation_config = read_json(generation_path);
  }
  for (const char* name :
       {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja"}) {
    const std::string file = path + '/' + name;
    if (exists(file)) {
      directory.tokenizer_files.push_back(file);
    }
  }
  return directory;
}

HfDirectory read_hf_directory(const std::string& path) {
  HfDirectory directory = read_hf_files(path);
  const auto& generation = directory.generation_config;
  directory.model =
      read_hf_config(path + "/config.json", directory.config, generation ? &*generation : nullptr);
  return directory;
}

}  // namespace paperlab::nn
