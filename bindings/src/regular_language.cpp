#include <pybind11/stl.h>

#include <chrono>
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
using namespace regular_language;  // NOLINT(google-build-using-namespace)

template <class E>
struct Name {
  const char* text;
  E value;
};

constexpr Name<Task> kTasks[] = {{"even_pairs", Task::kEvenPairs}, {"parity_cot", Task::kParityCot}};
constexpr Name<Method> kMethods[] = {
    {"two_class", Method::kTwoClass}, {"strings", Method::kStrings}, {"fold", Method::kFold}};
constexpr Name<Optimizer> kOptimizers[] = {{"gd", Optimizer::kGd},
                                           {"heavy_ball", Optimizer::kHeavyBall},
                                           {"normalized_gd", Optimizer::kNormalizedGd},
                                           {"adam", Optimizer::kAdam},
                                           {"sign_gd", Optimizer::kSignGd}};
constexpr Name<Embedding> kEmbeddings[] = {{"orthonormal", Embedding::kOrthonormal},
                                           {"gaussian", Embedding::kGaussian},
                                           {"token_position", Embedding::kTokenPosition}};

// An option of a fixed list as a property that holds its name.
template <class E, std::size_t N>
void def_named(py::class_<TrainOptions>& options, const char* argument, E TrainOptions::*member,
               const Name<E> (&names)[N]) {
  options.def_property(
      argument,
      [member, &names](const TrainOptions& self) {
        for (const Name<E>& name : names) {
          if (name.value == self.*member) {
            return name.text;
          }
        }
        return "";
      },
      [argument, member, &names](TrainOptions& self, const std::string& text) {
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
  py::class_<TrainOptions> options(m, "TrainOptions");
  options.def(py::init<>())
      .def_readwrite("max_length", &TrainOptions::max_length)
      .def_readwrite("base_length", &TrainOptions::base_length)
      .def_readwrite("learning_rate", &TrainOptions::learning_rate)
      .def_readwrite("attention_scale", &TrainOptions::attention_scale)
      .def_readwrite("boost_steps", &TrainOptions::boost_steps)
      .def_readwrite("num_steps", &TrainOptions::num_steps)
      .def_readwrite("init_std", &TrainOptions::init_std)
      .def_readwrite("seed", &TrainOptions::seed)
      .def_readwrite("record", &TrainOptions::record)
      .def_readwrite("boost", &TrainOptions::boost)
      .def_readwrite("freeze_attention_from", &TrainOptions::freeze_attention_from)
      .def_readwrite("regularizer_length", &TrainOptions::regularizer_length)
      .def_readwrite("uniform_weights", &TrainOptions::uniform_weights)
      .def_readwrite("embedding_dim", &TrainOptions::embedding_dim);
  def_named(options, "task", &TrainOptions::task, kTasks);
  def_named(options, "method", &TrainOptions::method, kMethods);
  def_named(options, "optimizer", &TrainOptions::optimizer, kOptimizers);
  def_named(options, "embedding", &TrainOptions::embedding, kEmbeddings);
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

TrainResult to_result(const History& history, py::ssize_t width) {
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
void poll_signals(TrainOptions& options) {
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

TrainResult train_options(TrainOptions options) {
  poll_signals(options);
  History history;
  {
    const py::gil_scoped_release without_gil;
    history = train(options);
  }
  return to_result(history, 2 * static_cast<py::ssize_t>(options.max_length));
}

StepArray chain_of_thought_arrays(const DoubleArray& u, const DoubleArray& w,
                                  const TokenArray& strings, bool truncated,
                                  double attention_scale) {
  const Model model{static_cast<int>(u.size() / 2), attention_scale, to_vector(u), to_vector(w)};
  const std::vector<std::uint8_t> tokens = to_vector(strings);
  const int base_length = static_cast<int>(strings.shape(1));
  std::vector<int> last;
  {
    const py::gil_scoped_release without_gil;
    last = chain_of_thought(model, tokens, base_length, truncated);
  }
  return to_array<std::int64_t>(last, {static_cast<py::ssize_t>(last.size())});
}

MaxMargin max_margin_arrays(const DoubleArray& features, const DoubleArray& labels) {
  const std::vector<double> z = to_vector(features);
  const std::vector<double> y = to_vector(labels);
  const py::gil_scoped_release without_gil;
  return max_margin(z, y);
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

  m.def("chain_of_thought", &chain_of_thought_arrays, py::arg("u"), py::arg("w"),
        py::arg("strings"), py::arg("truncated"), py::arg("attention_scale"));

  py::class_<MaxMargin>(m, "MaxMargin")
      .def_property_readonly("direction",
                             [](const MaxMargin& self) { return to_array(self.direction); })
      .def_readonly("margin", &MaxMargin::margin)
      .def_readonly("gap", &MaxMargin::gap);
  m.def("max_margin", &max_margin_arrays, py::arg("features"), py::arg("labels"));
}

}  // namespace paperlab::bindings
