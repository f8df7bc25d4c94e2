#include "experiments/common/output_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>

#include "paperlab/core/error.h"

namespace paperlab::experiments {
namespace {

// What the signal handler may touch: lock-free pointers to text that stays put.
std::array<std::atomic<const char*>, 2> temporaries{};
std::array<std::string, 2> temporary_names;

extern "C" void remove_temporaries_and_exit(int signal_number) {
  for (const auto& temporary : temporaries) {
    if (const char* path = temporary.load()) {
      unlink(path);
    }
  }
  _exit(128 + signal_number);
}

void announce_temporaries(const std::string& result_file, const std::string& config_file) {
  temporary_names = {result_file + ".tmp", config_file + ".tmp"};
  for (std::size_t i = 0; i < temporaries.size(); ++i) {
    temporaries[i] = temporary_names[i].c_str();
  }
}

}  // namespace

void install_signal_handlers() {
  struct sigaction action = {};
  action.sa_handler = remove_temporaries_and_exit;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  std::signal(SIGXFSZ, SIG_IGN);
}

OutputDir::OutputDir(const std::string& out, const std::string& paper) : path_(out + "/" + paper) {
  std::error_code error;
  std::filesystem::create_directories(path_, error);
  if (error) {
    throw IoError(path_ + ": " + error.message());
  }
  lock_ = open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ < 0) {
    throw IoError(path_ + ": " + std::strerror(errno));
  }
  // Some network file systems cannot lock a folder; there two runs are the user's affair.
  if (flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    close(lock_);
    throw IoError(path_ + ": another run is writing here");
  }
  announce_temporaries(result_file(), config_file());
}

OutputDir::~OutputDir() {
  for (auto& temporary : temporaries) {
    temporary = nullptr;
  }
  close(lock_);
}

void OutputDir::remove_temporaries() const {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(path_, error)) {
    if (entry.path().extension() == ".tmp") {
      std::filesystem::remove(entry.path(), error);
    }
  }
}

}  // namespace paperlab::experiments
