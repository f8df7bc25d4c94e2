#include "paperlab/train/agreement.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "paperlab/core/error.h"

namespace paperlab::train {
namespace {

// An exception as a text: a letter for its type, the error number of 'I', a bar, the message.
enum Kind : char { kValue = 'V', kType = 'T', kIo = 'I', kForeign = 'F' };

std::string told(Kind kind, const std::string& message, int code = 0) {
  return std::string(1, kind) + std::to_string(code) + "|" + message;
}

std::string first_line(const std::string& message) { return message.substr(0, message.find('\n')); }

std::string told(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const IoError& known) {
    return told(kIo, known.what(), known.code());
  } catch (const DTypeError& known) {
    return told(kType, known.what());
  } catch (const Error& known) {
    return told(kValue, known.what());
  } catch (const c10::TypeError& known) {
    return told(kType, known.what_without_backtrace());
  } catch (const c10::ValueError& known) {
    return told(kValue, known.what_without_backtrace());
  } catch (const c10::Error& foreign) {
    return told(kForeign, first_line(foreign.what_without_backtrace()));
  } catch (const std::exception& foreign) {
    return told(kForeign, first_line(foreign.what()));
  } catch (...) {
    return told(kForeign, "an exception");
  }
}

// As what the error of process `rank` arrives in another process.
std::exception_ptr heard(const std::string& text, std::int64_t rank, std::int64_t size) {
  const std::size_t bar = text.find('|');
  const std::string message = text.substr(bar + 1);
  switch (text[0]) {
    case kIo:
      return std::make_exception_ptr(IoError(message, std::stoi(text.substr(1, bar - 1))));
    case kType:
      return std::make_exception_ptr(DTypeError(message));
    case kValue:
      return std::make_exception_ptr(ValueError(message));
    default:
      return std::make_exception_ptr(IoError("fit: process " + std::to_string(rank) + " of " +
                                             std::to_string(size) + " failed: " + message));
  }
}

at::Tensor bytes_of(const std::string& text) {
  at::Tensor bytes = at::empty({static_cast<std::int64_t>(text.size())}, at::kByte);
  std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
  return bytes;
}

std::string text_of(const at::Tensor& bytes) {
  const at::Tensor dense = bytes.cpu().contiguous();
  return {static_cast<const char*>(dense.const_data_ptr()),
          static_cast<std::size_t>(dense.numel())};
}

}  // namespace

Agreement::Agreement(std::shared_ptr<Processes> processes, const at::Device& device)
    : processes_(std::move(processes)),
      device_(device),
      rank_(processes_ ? processes_->rank() : 0),
      size_(processes_ ? processes_->size() : 1) {}

std::vector<double> Agreement::sum(const std::vector<double>& values) const {
  if (is_alone()) {
    return values;
  }
  at::Tensor own = at::empty({static_cast<std::int64_t>(values.size())}, at::kDouble);
  std::copy(values.begin(), values.end(), own.mutable_data_ptr<double>());
  own = own.to(device_);
  processes_->start_sum(own)();
  own = own.cpu();
  const auto* first = own.const_data_ptr<double>();
  return {first, first + own.numel()};
}

std::vector<std::string> Agreement::texts(const std::string& own) const {
  if (is_alone()) {
    return {own};
  }
  std::vector<double> lengths(static_cast<std::size_t>(size_), 0.0);
  lengths[static_cast<std::size_t>(rank_)] = static_cast<double>(own.size());
  lengths = sum(lengths);
  const auto widest = static_cast<std::int64_t>(*std::max_element(lengths.begin(), lengths.end()));
  std::vector<std::string> all(lengths.size());
  if (widest == 0) {
    return all;
  }
  at::Tensor table = at::zeros({size_, widest}, at::kByte);  // others' rows: x + 0 = x
  table[rank_].narrow(0, 0, static_cast<std::int64_t>(own.size())).copy_(bytes_of(own));
  table = table.to(device_);
  processes_->start_sum(table)();
  for (std::size_t i = 0; i < all.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i);
    all[i] = text_of(table[row].narrow(0, 0, static_cast<std::int64_t>(lengths[i])));
  }
  return all;
}

std::string Agreement::text_of_first(const std::string& own) const {
  if (is_alone()) {
    return own;
  }
  const double length = sum({is_first() ? static_cast<double>(own.size()) : 0.0})[0];
  const at::Tensor bytes =
      (is_first() ? bytes_of(own) : at::empty({static_cast<std::int64_t>(length)}, at::kByte))
          .to(device_);
  if (bytes.numel() > 0) {
    processes_->start_copy(bytes, 0)();
  }
  return text_of(bytes);
}

double Agreement::together(const std::function<double()>& work) const {
  if (is_alone()) {
    return work();
  }
  std::exception_ptr failure;
  std::vector<double> told(static_cast<std::size_t>(size_) + 1, 0.0);
  try {
    told[static_cast<std::size_t>(rank_)] = work();
  } catch (const LostProcess&) {
    throw;
  } catch (...) {
    failure = std::current_exception();
    told.back() = 1.0;
  }
  told = sum(told);
  if (told.back() > 0.0) {
    fail(failure);
  }
  return *std::max_element(told.begin(), told.end() - 1);
}

void Agreement::fail(const std::exception_ptr& own) const {
  if (is_alone()) {
    std::rethrow_exception(own);
  }
  const std::string mine = own ? told(own) : "";
  const std::vector<std::string> all = texts(mine);
  if (own && mine[0] == kForeign) {
    std::rethrow_exception(own);
  }
  const auto first =
      std::find_if(all.begin(), all.end(), [](const std::string& text) { return !text.empty(); });
  std::rethrow_exception(heard(*first, first - all.begin(), size_));
}

}  // namespace paperlab::train
