#include "paperlab/train/run_directory.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/io/safetensors.h"

namespace paperlab::train {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = "checkpoint-";
constexpr char kTemporary[] = ".tmp";
constexpr int kDigits = 8;

[[noreturn]] void fail(const std::string& path, int code) {
  throw IoError(path + ": " + std::strerror(code), code);
}

void sync_folder(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) {
    fail(path, errno);
  }
  const int result = fsync(descriptor);
  const int code = errno;
  close(descriptor);
  if (result != 0) {
    fail(path, code);
  }
}

void remove_all(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) {
    fail(path, error.value());
  }
}

// Whoever is killed meanwhile leaves no half of one under its name.
void remove_checkpoint(const std::string& path) {
  const std::string temporary = path + kTemporary;
  remove_all(temporary);
  if (std::rename(path.c_str(), temporary.c_str()) != 0) {
    fail(path, errno);
  }
  remove_all(temporary);
}

bool is_left_over(const std::string& name) {
  const std::size_t most = name.size() - std::min(name.size(), sizeof(kTemporary) - 1);
  return name.rfind(kPrefix, 0) == 0 && name.substr(most) == kTemporary;
}

io::ElementType element_type(const at::Tensor& value) {
  return value.scalar_type() == at::kDouble     ? io::ElementType::kF64
         : value.scalar_type() == at::kBFloat16 ? io::ElementType::kBF16
         : value.scalar_type() == at::kHalf     ? io::ElementType::kF16
                                                : io::ElementType::kF32;
}

at::ScalarType scalar_type(const std::string& path, io::ElementType type) {
  switch (type) {
    case io::ElementType::kF64:
      return at::kDouble;
    case io::ElementType::kBF16:
      return at::kBFloat16;
    case io::ElementType::kF16:
      return at::kHalf;
    case io::ElementType::kF32:
      return at::kFloat;
    default:
      throw ValueError(path + ": holds " + io::element_type_name(type) +
                       ", which no optimizer has");
  }
}

void write_state(const std::string& path, const NamedState& state) {
  std::vector<io::TensorSpec> specs;
  for (const auto& [name, value] : state) {
    specs.push_back({name, element_type(value), value.sizes().vec()});
  }
  io::SafetensorsWriter writer(path, std::move(specs), io::Metadata{{"format", "pt"}});
  for (const auto& [name, value] : state) {
    const at::Tensor dense = value.to(at::kCPU).contiguous();
    writer.append(name, dense.const_data_ptr(), static_cast<std::uint64_t>(dense.nbytes()));
  }
  writer.finish();
}

NamedState read_state(const std::string& path) {
  const io::SafetensorsFile file(path);
  NamedState state;
  std::vector<io::ReadRange> ranges;
  for (const io::TensorEntry& entry : file.tensors()) {
    at::Tensor value = at::empty(entry.shape, scalar_type(path, entry.type));
    ranges.push_back({entry.offset, entry.num_bytes, value.mutable_data_ptr()});
    state.emplace_back(entry.name, std::move(value));
  }
  file.file().read(ranges, *default_executor());
  return state;
}

StepRecord parse_record(const std::string& path, const std::string& line, std::int64_t step) {
  const Json value = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  const bool is_record = value.is_object() && value.contains("step") && value["step"] == step &&
                         value.contains("loss") && value["loss"].is_number() &&
                         value.contains("grad_norm") && value["grad_norm"].is_number() &&
                         value.contains("learning_rate") && value["learning_rate"].is_number();
  require<ValueError>(is_record, path.c_str(), "a record of step " + std::to_string(step),
                      line.substr(0, 80));
  return {step, value["loss"], value["grad_norm"], value["learning_rate"]};
}

// Those of `path` and its parents that are not there, the innermost first.
std::vector<std::string> missing_directories(const std::string& path) {
  std::vector<std::string> missing;
  std::error_code error;
  for (fs::path part = fs::absolute(path, error); !error && part.has_relative_path();
       part = part.parent_path()) {
    if (part.has_filename()) {
      if (fs::exists(part, error) || error) {
        break;
      }
      missing.push_back(part);
    }
  }
  return missing;
}

struct Metrics {
  std::vector<StepRecord> records{};
  std::uintmax_t num_bytes = 0;  // of their lines
};

// Of the first `most` lines, or of all that there are.
Metrics first_metrics(const std::string& path, std::int64_t most) {
  Metrics metrics;
  std::ifstream file(path);
  std::string line;
  std::int64_t step = 0;
  // A line that the end of the file ends is not whole.
  while (step < most && std::getline(file, line) && !file.eof()) {
    metrics.records.push_back(parse_record(path, line, step++));
    metrics.num_bytes += line.size() + 1;
  }
  return metrics;
}

Metrics read_metrics(const std::string& path, std::int64_t num_steps) {
  Metrics metrics = first_metrics(path, num_steps);
  const auto count = static_cast<std::int64_t>(metrics.records.size());
  require<ValueError>(count == num_steps, path.c_str(), std::to_string(num_steps) + " lines",
                      std::to_string(count));
  return metrics;
}

}  // namespace

void SavedTensors::put_into(const Model& model) const {
  const at::NoGradGuard no_grad;
  const auto& into = model.parameters();
  for (std::size_t i = 0; i < into.size(); ++i) {
    into[i].value->copy_(values[i].second);
  }
}

RunDirectory::RunDirectory(std::string path)
    : path_(std::move(path)), metrics_(nullptr, std::fclose) {
  std::error_code error;
  made_ = missing_directories(path_);
  fs::create_directories(path_, error);
  if (error) {
    fail(path_, error.value());
  }
  take();
  std::vector<std::string> left_over;
  for (const fs::directory_entry& entry : fs::directory_iterator(path_)) {
    if (is_left_over(entry.path().filename())) {
      left_over.push_back(entry.path());
    }
  }
  for (const std::string& temporary : left_over) {
    fs::remove_all(temporary, error);  // what stays does no harm
  }
}

void RunDirectory::take() {
  const std::string lock = lock_path();
  lock_ = open(lock.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  made_lock_ = lock_ >= 0;
  if (!made_lock_) {
    lock_ = open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  }
  if (lock_ < 0) {
    fail(lock, errno);
  }
  struct stat status{};
  const bool is_taken = flock(lock_, LOCK_EX | LOCK_NB) == 0 && fstat(lock_, &status) == 0;
  const int code = errno;
  if (!is_taken || status.st_nlink == 0) {  // another one has it, or has just removed it
    close(lock_);
    throw TakenDirectory(path_ + ": another run is writing there", is_taken ? 0 : code);
  }
}

RunDirectory::~RunDirectory() {
  if (!has_begun_ && made_lock_) {
    unlink(lock_path().c_str());
    for (const std::string& directory : made_) {
      rmdir(directory.c_str());  // which leaves one that others use
    }
  }
  close(lock_);
}

std::string RunDirectory::checkpoint_path(std::int64_t step) const {
  const std::string digits = std::to_string(step);
  const int zeros = std::max(0, kDigits - static_cast<int>(digits.size()));
  return path_ + "/" + kPrefix + std::string(static_cast<std::size_t>(zeros), '0') + digits;
}

std::vector<std::int64_t> RunDirectory::checkpoints() const {
  std::vector<std::int64_t> steps;
  for (const fs::directory_entry& entry : fs::directory_iterator(path_)) {
    const std::string name = entry.path().filename();
    const std::string digits = name.substr(std::min(name.size(), sizeof(kPrefix) - 1));
    const bool is_number = !digits.empty() && digits.size() < 18 &&
                           digits.find_first_not_of("0123456789") == std::string::npos;
    if (name.rfind(kPrefix, 0) == 0 && is_number && entry.is_directory()) {
      steps.push_back(std::stoll(digits));
    }
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

Json RunDirectory::training(std::int64_t step) const {
  const std::string path = checkpoint_path(step) + "/training.json";
  Json training = read_json(path);
  require<ValueError>(training.is_object() && training.value("step", Json(step)) == step,
                      path.c_str(), "an object of step " + std::to_string(step),
                      training.dump().substr(0, 80));
  return training;
}

SavedTensors RunDirectory::read(std::int64_t step, const Model& model) const {
  const std::string path = checkpoint_path(step);
  SavedTensors saved;  // one by one: GCC 12 destroys members of an aggregate twice
  saved.values = model.read(path);
  saved.state = read_state(path + "/optimizer.safetensors");
  return saved;
}

void RunDirectory::save(std::int64_t step, const Model& model, const NamedState& state,
                        const Json& training, std::int64_t keep) {
  const std::string path = checkpoint_path(step);
  const std::string temporary = path + kTemporary;
  std::error_code error;
  has_begun_ = true;
  remove_all(temporary);
  try {
    model.save(temporary);
    write_state(temporary + "/optimizer.safetensors", state);
    write_json(temporary + "/training.json", training);
    if (metrics_ != nullptr && fsync(fileno(metrics_.get())) != 0) {
      fail(metrics_path(), errno);
    }
    sync_folder(temporary);
    remove_all(path);
    if (std::rename(temporary.c_str(), path.c_str()) != 0) {
      fail(path, errno);
    }
    sync_folder(path_);
  } catch (...) {
    fs::remove_all(temporary, error);
    throw;
  }
  const std::vector<std::int64_t> steps = checkpoints();
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < steps.size(); ++i) {
    remove_checkpoint(checkpoint_path(steps[i]));
  }
}

void RunDirectory::clear() {
  for (const std::int64_t step : checkpoints()) {
    remove_checkpoint(checkpoint_path(step));
  }
  for (const std::string& path : EventFile::files(path_)) {
    remove_all(path);
  }
  remove_all(metrics_path());
}

void RunDirectory::check_metrics() const {
  std::ifstream file(metrics_path());
  std::string line;
  if (!std::getline(file, line)) {
    return;  // none, or empty
  }
  if (!file.eof()) {
    parse_record(metrics_path(), line, 0);
    return;
  }
  require<ValueError>(line[0] == '{', metrics_path().c_str(), "a record of step 0",
                      line.substr(0, 80));
}

std::vector<StepRecord> RunDirectory::metrics(std::int64_t num_steps) const {
  return read_metrics(metrics_path(), num_steps).records;
}

void RunDirectory::open_metrics(std::int64_t num_steps) {
  has_begun_ = true;
  const std::uintmax_t num_bytes = read_metrics(metrics_path(), num_steps).num_bytes;
  metrics_.reset(std::fopen(metrics_path().c_str(), "ae"));
  if (metrics_ == nullptr ||
      ftruncate(fileno(metrics_.get()), static_cast<off_t>(num_bytes)) != 0) {
    fail(metrics_path(), errno);
  }
  events_ = std::make_unique<EventFile>(path_, num_steps);
}

bool RunDirectory::has_metrics(const std::string& path) {
  std::error_code error;
  return fs::is_regular_file(path + "/metrics.jsonl", error);
}

bool RunDirectory::complete_metrics(const std::vector<StepRecord>& records) {
  const auto num_steps = static_cast<std::int64_t>(records.size());
  const std::vector<StepRecord> there = first_metrics(metrics_path(), num_steps).records;
  const auto count = static_cast<std::int64_t>(there.size());
  if (count + 1 < num_steps || !std::equal(there.begin(), there.end(), records.begin())) {
    return false;
  }
  open_metrics(count);
  if (count < num_steps) {
    append(records.back());
  }
  return true;
}

void RunDirectory::append(const StepRecord& record) {
  const Json value = {{"step", record.step},
                      {"loss", record.loss},
                      {"grad_norm", record.grad_norm},
                      {"learning_rate", record.learning_rate}};
  const std::string line = value.dump() + "\n";
  const bool is_written = std::fputs(line.c_str(), metrics_.get()) >= 0;
  if (!is_written || std::fflush(metrics_.get()) != 0) {
    fail(metrics_path(), errno);
  }
  events_->append(record.step, {{"loss", record.loss},
                                {"grad_norm", record.grad_norm},
                                {"learning_rate", record.learning_rate}});
}

void RunDirectory::append_measures(std::int64_t step, const Scalars& measures) {
  events_->append(step, measures);
}

}  // namespace paperlab::train
