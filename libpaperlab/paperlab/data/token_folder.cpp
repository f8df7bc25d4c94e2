#include <algorithm>
#include <array>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/data/tokens.h"

namespace paperlab::data {
namespace {

constexpr std::int64_t kFormat = 1;
constexpr const char* kManifest = "/manifest.json";

struct TypeName {
  const char* name;
  io::ElementType type;
};
constexpr std::array<TypeName, 3> kTypes = {{{"uint8", io::ElementType::kU8},
                                             {"uint16", io::ElementType::kU16},
                                             {"uint32", io::ElementType::kU32}}};

// A member of an object; throws what the caller turns into "FILE: reason".
const Json& member(const Json& object, const char* key) {
  if (!object.is_object() || !object.contains(key)) {
    throw ValueError(std::string("'") + key + "' is missing");
  }
  return object.at(key);
}

std::int64_t integer(const Json& object, const char* key, std::int64_t low, std::int64_t high) {
  const Json& value = member(object, key);
  const bool is_there = value.is_number_integer() &&
                        (!value.is_number_unsigned() ||
                         value.get<std::uint64_t>() <= static_cast<std::uint64_t>(high)) &&
                        value.get<std::int64_t>() >= low && value.get<std::int64_t>() <= high;
  if (!is_there) {
    throw ValueError(std::string("'") + key + "' must be in " + std::to_string(low) + ".." +
                     std::to_string(high) + ", got " + value.dump().substr(0, 60));
  }
  return value.get<std::int64_t>();
}

std::string text(const Json& object, const char* key) {
  const Json& value = member(object, key);
  if (!value.is_string()) {
    throw ValueError(std::string("'") + key + "' must be a string");
  }
  return value.get<std::string>();
}

// A name that becomes a part of a path: one folder or file, no other.
std::string path_part(const std::string& name) {
  const bool is_plain = !name.empty() && name.size() <= 100 && name.front() != '.' &&
                        std::all_of(name.begin(), name.end(), [](char c) {
                          return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                                 (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
                        });
  if (!is_plain) {
    throw ValueError("names must be letters, digits, '-', '_' and '.', got " +
                     Json(name.substr(0, 60)).dump(-1, ' ', true, Json::error_handler_t::replace));
  }
  return name;
}

}  // namespace

TokenFolder::TokenFolder(std::string folder) : folder_(std::move(folder)) {
  const std::string path = folder_ + kManifest;
  manifest_ = read_json(path);
  try {
    read_manifest();
  } catch (const ValueError& error) {
    throw ValueError(path + ": " + error.what());
  }
}

void TokenFolder::read_manifest() {
  constexpr std::int64_t kMaxVocabSize = std::int64_t{1} << 32;
  if (integer(manifest_, "format", 1, 1'000'000) != kFormat) {
    throw ValueError("is of another format, " + member(manifest_, "format").dump());
  }
  vocab_size_ = integer(manifest_, "vocab_size", 1, kMaxVocabSize);
  const std::string name = text(manifest_, "dtype");
  const auto* const found = std::find_if(kTypes.begin(), kTypes.end(),
                                         [&](const TypeName& type) { return name == type.name; });
  if (found == kTypes.end()) {
    throw ValueError("'dtype' must be uint8, uint16 or uint32");
  }
  type_ = found->type;
  const Json& domains = member(manifest_, "domains");
  if (!domains.is_array() || domains.empty()) {
    throw ValueError("'domains' must be an array of at least one");
  }
  for (const Json& domain : domains) {
    read_domain(domain);
  }
}

void TokenFolder::read_domain(const Json& domain) {
  constexpr std::int64_t kMaxCount = std::int64_t{1} << 60;
  const std::string name = path_part(text(domain, "name"));
  if (counts_.contains(name)) {
    throw ValueError("domain " + name + " is there twice");
  }
  domains_.push_back(name);
  const Json& splits = member(domain, "splits");
  if (!splits.is_object()) {
    throw ValueError("'splits' must be an object");
  }
  for (const auto& [split, record] : splits.items()) {
    counts_[name][path_part(split)] = {integer(record, "documents", 0, kMaxCount),
                                       integer(record, "tokens", 0, kMaxCount),
                                       integer(record, "bytes", 0, kMaxCount)};
  }
}

const SplitCount& TokenFolder::count(const std::string& domain, const std::string& split) const {
  const auto splits = counts_.find(domain);
  std::string known;
  if (splits == counts_.end()) {
    for (const std::string& name : domains_) {
      known += (known.empty() ? "" : ", ") + name;
    }
    throw ValueError(folder_ + ": has no domain '" + domain + "'; there are " + known);
  }
  const auto found = splits->second.find(split);
  if (found == splits->second.end()) {
    for (const auto& [name, count] : splits->second) {
      known += (known.empty() ? "" : ", ") + name;
    }
    throw ValueError(folder_ + ": domain " + domain + " has no split '" + split + "'; there are " +
                     known);
  }
  return found->second;
}

std::shared_ptr<const TokenFile> TokenFolder::open(const std::string& domain,
                                                   const std::string& split) const {
  const SplitCount& wanted = count(domain, split);
  const std::string path = folder_ + "/" + domain + "/" + split;
  auto file =
      std::make_shared<const TokenFile>(path + ".npy", path + "_documents.npy", vocab_size_);
  if (file->type() != type_) {
    throw DTypeError(file->path() + ": holds " + io::element_type_name(file->type()) +
                     ", the manifest says " + io::element_type_name(type_));
  }
  if (file->num_tokens() != wanted.tokens || file->num_documents() != wanted.documents) {
    throw ValueError(file->path() + ": has " + std::to_string(file->num_tokens()) + " tokens in " +
                     std::to_string(file->num_documents()) + " documents, the manifest says " +
                     std::to_string(wanted.tokens) + " in " + std::to_string(wanted.documents));
  }
  return file;
}

}  // namespace paperlab::data
