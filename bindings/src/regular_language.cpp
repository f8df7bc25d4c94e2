#include <pybind11/stl.h>

#include <chrono>
#include <optional>
#include <string>
#include <utility>

#include "bindings/src/arrays.h"
#include "bindings/src/registrars.h"
#include "paperlab/regular_language/max_margin.h"
#include "paperlab/regular_language/model.h"
#include "paperlab/regular_language/train.h"

namespace paperlab::bindings {
namespace {

namespace py = pybind11;
namespace rl = regular_language;

template <class E>
struct Name {
  const char* text;
  E value;
};

constexpr Name<rl::Task> kTasks[] = {{"even_pairs", rl::Task::kEvenPairs},
                                     {"parity_cot", rl::Task::kParityCot}};
constexpr Name<rl::Method> kMethods[] = {{"two_class", rl::Method::kTwoClass},
                                         {"strings", rl::Method::kStrings},
                                         {"fold", rl::Method::kFold}};
constexpr Name<rl::Optimizer> kOptimizers[] = {{"gd", rl::Optimizer::kGd},
                                               {"heavy_ball", rl::Optimizer::kHeavyBall},
                                               {"normalized_gd", rl::Optimizer::kNormalizedGd},
                                               {"adam", rl::Optimizer::kAdam},
                                               {"sign_gd", rl::Optimizer::kSignGd}};
constexpr Name<rl::Embedding> kEmbeddings[] = {{"orthonormal", rl::Embedding::kOrthonormal},
                                               {"gaussian", rl::Embedding::kGaussian},
                                               {"token_position", rl::Embedding::kTokenPosition}};
constexpr Name<rl::Device> kDevices[] = {{"cpu", rl::Device::kCpu}, {"cuda", rl::Device::kCuda}};

// An option of a fixed list as a property that holds its name.
template <class E, std::size_t N>
void def_named(py::class_<rl::TrainOptions>& options, const char* argument,
               E rl::TrainOptions::* member, const Name<E> (&names)[N]) {
  options.def_property(
      argument,
      [member, &names](const rl::TrainOptions& self) {
        for (const Name<E>& name : names) {
          if (name.value == self.*member) {
            return name.text;
          }
        }
        return "";
      },
      [argument, member, &names](rl::TrainOptions& self, const std::string& text) {
        std::string allowed;
        for (const Name<E>& name : names) {
          if (text == name.text) {
            self.*member = name.value;
            return;
          }
          allowed += (allowed.empty() ? "'" : ", '") + std::string(name.text) + "'";
        }
        throw ValueError("train: " + std::string(argument) + " must be one of " + allowed +
                         ", got '" + text + "'");
      });
}

void register_options(py::module_& m) {
  py::class_<rl::TrainOptions> options(m, "TrainOptions");
  options.def(py::init<>())
      .def_readwrite("max_length", &rl::TrainOptions::max_length)
      .def_readwrite("base_length", &rl::TrainOptions::base_length)
      .def_readwrite("learning_rate", &rl::TrainOptions::learning_rate)
      .def_readwrite("attention_scale", &rl::TrainOptions::attention_scale)
      .def_readwrite("boost_steps", &rl::TrainOptions::boost_steps)
      .def_readwrite("num_steps", &rl::TrainOptions::num_steps)
      .def_readwrite("init_std", &rl::TrainOptions::init_std)
      .def_readwrite("seed", &rl::TrainOptions::seed)
      .def_readwrite("record", &rl::TrainOptions::record)
      .def_readwrite("boost", &rl::TrainOptions::boost)
      .def_readwrite("freeze_attention_from", &rl::TrainOptions::freeze_attention_from)
      .def_readwrite("regularizer_length", &rl::TrainOptions::regularizer_length)
      .def_readwrite("uniform_weights", &rl::TrainOptions::uniform_weights)
      .def_readwrite("embedding_dim", &rl::TrainOptions::embedding_dim);
  def_named(options, "task", &rl::TrainOptions::task, kTasks);
  def_named(options, "method", &rl::TrainOptions::method, kMethods);
  def_named(options, "optimizer", &rl::TrainOptions::optimizer, kOptimizers);
  def_named(options, "embedding", &rl::TrainOptions::embedding, kEmbeddings);
  def_named(options, "device", &rl::TrainOptions::device, kDevices);
}

struct TrainResult {
  StepArray step;
  DoubleArray loss;
  DoubleArray accuracy;
  DoubleArray u;
  DoubleArray w_norm;
  DoubleArray u_norm;
  std::optional<DoubleArray> w;
};

TrainResult to_result(const rl::History& history, py::ssize_t width) {
  std::vector<double> u;
  for (const std::vector<double>& row : history.u) {
    u.insert(u.end(), row.begin(), row.end());
  }
  TrainResult result{to_array(history.step),
                     to_array(history.loss),
                     to_array(history.accuracy),
                     to_array<double>(u, {static_cast<py::ssize_t>(history.u.size()), width}),
                     to_array(history.w_norm),
                     to_array(history.u_norm),
                     std::nullopt};
  if (!history.w.empty()) {
    result.w = to_array<double>(history.w, {width, width});
  }
  return result;
}

// Lets Python handle signals twenty times a second, so that Ctrl-C ends a training.
void poll_signals(rl::TrainOptions& options) {
  using Clock = std::chrono::steady_clock;
  options.on_step = [next = Clock::now()](std::int64_t) mutable {
    const Clock::time_point now = Clock::now();
    if (now < next) {
      return;
    }
    next = now + std::chrono::milliseconds(50);
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) {
      throw py::error_already_set();
    }
  };
}

TrainResult train_options(rl::TrainOptions options) {
  poll_signals(options);
  rl::History history;
  {
    const py::gil_scoped_release without_gil;
    history = rl::train(options);
  }
  return to_result(history, 2 * static_cast<py::ssize_t>(options.max_length));
}

StepArray chain_of_thought_arrays(const DoubleArray& u, const DoubleArray& w,
                                  const TokenArray& strings, bool truncated,
                                  double attention_scale) {
  const rl::Model model{static_cast<int>(u.size() / 2), attention_scale, to_vector(u),
                        to_vector(w)};
  const std::vector<std::uint8_t> tokens = to_vector(strings);
  const int base_length = static_cast<int>(strings.shape(1));
  std::vector<int> last;
  {
    const py::gil_scoped_release without_gil;
    last = rl::chain_of_thought(model, tokens, base_length, truncated);
  }
  return to_array<std::int64_t>(last, {static_cast<py::ssize_t>(last.size())});
}

rl::MaxMargin max_margin_arrays(const DoubleArray& features, const DoubleArray& labels) {
  const std::vector<double> z = to_vector(features);
  const std::vector<double> y = to_vector(labels);
  const py::gil_scoped_release without_gil;
  return rl::max_margin(z, y);
}

}  // namespace

void register_regular_language(py::module_& m) {
  register_options(m);
  py::class_<TrainResult>(m, "TrainResult")
      .def_readonly("step", &TrainResult::step)
      .def_readonly("loss", &TrainResult::loss)
      .def_readonly("accuracy", &TrainResult::accuracy)
      .def_readonly("u", &TrainResult::u)
      .def_readonly("w_norm", &TrainResult::w_norm)
      .def_readonly("u_norm", &TrainResult::u_norm)
      .def_readonly("w", &TrainResult::w);
  m.def("train", &train_options, py::arg("options"));
  m.def("cuda_train_is_verified", [] { return rl::kCudaIsVerified; });

  m.def("chain_of_thought", &chain_of_thought_arrays, py::arg("u"), py::arg("w"),
        py::arg("strings"), py::arg("truncated"), py::arg("attention_scale"));

  py::class_<rl::MaxMargin>(m, "MaxMargin")
      .def_property_readonly("direction",
                             [](const rl::MaxMargin& self) { return to_array(self.direction); })
      .def_readonly("margin", &rl::MaxMargin::margin)
      .def_readonly("gap", &rl::MaxMargin::gap);
  m.def("max_margin", &max_margin_arrays, py::arg("features"), py::arg("labels"));
}

}  // namespace paperlab::bindings
