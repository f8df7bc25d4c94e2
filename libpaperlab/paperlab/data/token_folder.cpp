#include <algorithm>
#include <array>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/data/manifest_internal.h"
#include "paperlab/data/tokens.h"

namespace paperlab::data {
namespace {

using manifest::integer;
using manifest::member;
using manifest::path_part;
using manifest::text;

constexpr std::int64_t kFormat = 1;
constexpr const char* kManifest = "/manifest.json";

struct TypeName {
  const char* name;
  io::ElementType type;
};
constexpr std::array<TypeName, 3> kTypes = {{{"uint8", io::ElementType::kU8},
                                             {"uint16", io::ElementType::kU16},
                                             {"uint32", io::ElementType::kU32}}};

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
