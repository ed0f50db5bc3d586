// The Python module _C: what was built, what it runs on, and the core functions for the tests.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "core/gaussian.h"
#include "core/normal.h"
#include "cpu/device.h"

namespace py = pybind11;
using namespace py::literals;
using namespace illia::base;

namespace {

#define ILLIA_STRING(...) #__VA_ARGS__
#define ILLIA_EXPANDED_STRING(...) ILLIA_STRING(__VA_ARGS__)

// False, or with which compiler and for which targets the CUDA kernels were built.
py::object cuda_info() {
#if defined(ILLIA_CUDA_VERSION)
  return py::dict("version"_a = ILLIA_EXPANDED_STRING(ILLIA_CUDA_VERSION),
                  "targets"_a = py::str(ILLIA_EXPANDED_STRING(ILLIA_CUDA_TARGETS)).attr("split")(","));
#else
  return py::bool_(false);
#endif
}

// None, or the digest of what this library was compiled from: illia_ext/_native/build.py, sources_digest.
py::object sources_digest() {
#if defined(ILLIA_SOURCES_DIGEST)
  return py::str(ILLIA_EXPANDED_STRING(ILLIA_SOURCES_DIGEST));
#else
  return py::none();
#endif
}

py::dict build_info() {
#if defined(__clang__)
  const char* compiler = "clang " __clang_version__;
#else
  const char* compiler = "gcc " __VERSION__;
#endif
#if defined(__x86_64__)
  const std::vector<std::string> capabilities{"base", "avx2", "avx512"};
#else
  const std::vector<std::string> capabilities{"base"};
#endif
  return py::dict("compiler"_a = compiler, "cxx_standard"_a = __cplusplus, "cpu_capabilities"_a = capabilities,
                  "cuda"_a = cuda_info(), "libtorch_target"_a = "2.10", "sources"_a = sources_digest());
}

// Philox4x32-10 in both lane widths, which must agree.
std::array<uint32_t, 4> philox(const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key) {
  PhiloxBlock<uint32_t> narrow;
  PhiloxBlock<uint64_t> wide;
  for (int i = 0; i < 4; ++i) narrow.words[i] = wide.words[i] = counter[i];
  narrow = philox4x32(narrow, key[0], key[1]);
  wide = philox4x32(wide, key[0], key[1]);
  std::array<uint32_t, 4> words;
  for (int i = 0; i < 4; ++i) {
    words[i] = narrow.word(i);
    if (wide.word(i) != words[i]) throw std::logic_error("philox4x32 differs between lane widths");
  }
  return words;
}

template <typename acc_t>
void define_elementwise(py::module_& m) {
  const auto define = [&](const char* name, acc_t (*function)(acc_t)) { m.def(name, py::vectorize(function)); };
  define("exp_nonpositive", [](acc_t x) { return exp_nonpositive(x); });
  define("log1p_ratio", [](acc_t t) { return log1p_ratio(t); });
  define("log_normal", [](acc_t x) { return log_normal(x); });
  define("sin_turns", [](acc_t turns) {
    acc_t sine, cosine;
    sin_cos_turns(turns, &sine, &cosine);
    return sine;
  });
  define("cos_turns", [](acc_t turns) {
    acc_t sine, cosine;
    sin_cos_turns(turns, &sine, &cosine);
    return cosine;
  });
  define("softplus", [](acc_t rho) { return softplus(rho).sigma; });
  define("log_sigma", [](acc_t rho) { return log_sigma(rho); });
  define("log_sigma_derivative", [](acc_t rho) { return log_sigma_derivative(softplus(rho)); });
  define("sigmoid", [](acc_t rho) {
    const Softplus<acc_t> s = softplus(rho);
    return sigmoid(rho, s.sigma, log_sigma_derivative(s));
  });
  m.def("box_muller", [](acc_t radius_uniform, acc_t angle_uniform) {
    acc_t cosine_normal, sine_normal;
    box_muller(radius_uniform, angle_uniform, &cosine_normal, &sine_normal);
    return py::make_tuple(cosine_normal, sine_normal);
  });
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Registers torch.ops.illia_ext; offers build_info(), cpu_capability() and the core functions.";
  m.def("build_info", &build_info, "How this library was built.");
  const std::string capability = illia::cpu_capability().name;  // refuses a wrong ILLIA_EXT_CPU_CAPABILITY at import
  m.def("cpu_capability", [capability] { return capability; }, "The instruction set in use: base, avx2 or avx512.");

  py::module_ core = m.def_submodule("core", "The functions of csrc/core, for tests.");
  core.def("philox4x32", &philox, "counter"_a, "key"_a);
  core.def("uniform", py::vectorize([](uint32_t word) { return uniform(word); }));
  core.def("uniform", py::vectorize([](uint32_t high, uint32_t low) { return uniform(high, low); }));
  py::module_ in_float = core.def_submodule("float32"), in_double = core.def_submodule("float64");
  define_elementwise<float>(in_float);
  define_elementwise<double>(in_double);
}
