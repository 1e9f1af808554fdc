// What tch has no call for: a pass that begins with a clean thread, gives the model its own defaults, runs the hooks of the
// top module, and says of each result what it is before its memory is read. See ffi.rs for the other side of each struct.

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <c10/core/AutogradState.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/runtime/graph_iterator.h>
#include <torch/csrc/jit/runtime/print_handler.h>
#include <torch/csrc/jit/serialization/import.h>

namespace {

using torch::jit::IValue;

// A result that nests deeper is not walked: each level is a stack frame.
constexpr int MOST_NESTED = 64;

// A message that is plain already. Everything else that is thrown is libtorch's.
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Model {
  torch::jit::Module module;
  torch::jit::Method forward;
  bool hooked;
  // Its code sets the seed of the generator that all models share.
  bool seeds;
};

enum Tag : int32_t { TENSOR, NONE, INT, FLOAT, BOOL, LIST, DICT, TUPLE, DEFAULT };

struct Arg {
  int32_t tag;
  // Items of a list, dict or tuple: they follow.
  int32_t items;
  // The value, or the number of a leaf.
  int64_t number;
  double real;
  const char* key;
  size_t key_len;
};

struct Result {
  const char* name;
  size_t name_len;
  // Owned by whom it is given to.
  at::Tensor* tensor;
  int32_t dtype;
  const int64_t* sizes;
  size_t dims;
};

using Sink = void (*)(void*, const Result*);

// What an operator can change of its thread (torch.set_grad_enabled, autocast), as it is where none has run: what one pass
// leaves must not reach the next. at::ThreadLocalState holds more than a model can change, and takes 2 us to set.
// What holds for the whole process (default dtype, deterministic algorithms) no operator can change.
struct ThreadState {
  c10::impl::LocalDispatchKeySet keys = c10::impl::tls_local_dispatch_key_set();
  c10::AutogradState autograd = c10::AutogradState::get_tls_state();
  at::ScalarType autocast = at::autocast::get_autocast_dtype(at::kCPU);

  void set() const {
    c10::impl::_force_tls_local_dispatch_key_set(keys);
    c10::AutogradState::set_tls_state(autograd);
    if (at::autocast::get_autocast_dtype(at::kCPU) != autocast) at::autocast::set_autocast_dtype(at::kCPU, autocast);
  }
};

// Takes what a model prints (0) or warns of (1); the text is whole until it returns.
using Ear = void (*)(int, const char*, size_t);
Ear ear = nullptr;

struct Warnings : c10::WarningHandler {
  void process(const c10::Warning& warning) override { ear(1, warning.msg().data(), warning.msg().size()); }
};

const ThreadState& clean_state() {
  static const ThreadState clean = [] {
    at::NoGradGuard no_grad;
    return ThreadState();
  }();
  return clean;
}

struct CleanThread {
  explicit CleanThread(bool seeds = false) : threads(at::get_num_threads()), seeds(seeds) {
    static Warnings warnings;
    // Per thread, and a thread that libtorch made has none yet.
    c10::WarningUtils::set_warning_handler(&warnings);
    clean_state().set();
  }
  ~CleanThread() {
    clean_state().set();
    if (at::get_num_threads() != threads) at::set_num_threads(threads);
    if (seeds) {
      at::Generator generator = at::globalContext().defaultGenerator(at::kCPU);
      std::lock_guard<std::mutex> lock(generator.mutex());
      generator.seed();
    }
  }
  const int threads;
  const bool seeds;
};

struct Args {
  const Arg* next;
  const Arg* end;
  at::Tensor* const* leaves;
  size_t leaf_count;

  const Arg& take() {
    if (next == end) throw Refusal("an argument is cut short");
    return *next++;
  }

  at::Tensor leaf(const Arg& arg) {
    if (arg.number < 0 || static_cast<size_t>(arg.number) >= leaf_count) throw Refusal("an argument has no tensor");
    return *leaves[arg.number];
  }

  IValue value(const Arg& arg) {
    switch (arg.tag) {
      case TENSOR:
        return leaf(arg);
      case NONE:
        return IValue();
      case INT:
        return IValue(arg.number);
      case FLOAT:
        return IValue(arg.real);
      case BOOL:
        return IValue(arg.number != 0);
      case LIST: {
        c10::List<at::Tensor> list;
        for (int32_t i = 0; i < arg.items; ++i) list.push_back(leaf(take()));
        return list;
      }
      case DICT: {
        c10::Dict<std::string, at::Tensor> dict;
        for (int32_t i = 0; i < arg.items; ++i) {
          const Arg& item = take();
          dict.insert(std::string(item.key, item.key_len), leaf(item));
        }
        return dict;
      }
      case TUPLE: {
        std::vector<IValue> items;
        for (int32_t i = 0; i < arg.items; ++i) items.push_back(value(take()));
        return c10::ivalue::Tuple::create(std::move(items));
      }
      default:
        throw Refusal("an argument of no known kind");
    }
  }

  // All arguments of forward, with the model's own defaults where nothing is given.
  std::vector<IValue> inputs(const c10::FunctionSchema& schema) {
    std::vector<IValue> inputs;
    const auto& arguments = schema.arguments();
    inputs.reserve(arguments.size());
    // The first is self.
    for (size_t i = 1; i < arguments.size(); ++i) {
      const Arg* given = next == end ? nullptr : &take();
      if (given != nullptr && given->tag != DEFAULT) {
        inputs.push_back(value(*given));
      } else if (const auto& own = arguments[i].default_value()) {
        inputs.push_back(*own);
      } else {
        throw Refusal("argument '" + arguments[i].name() + "' is missing, and the model has no default for it");
      }
    }
    if (next != end) throw Refusal("the model takes fewer arguments than are given");
    return inputs;
  }
};

struct Results {
  Sink sink;
  void* into;

  static std::string called(const std::string& path) {
    return path.empty() ? "output_0" : path;
  }

  static std::string item(const std::string& path, size_t at) {
    return (path.empty() ? "output_" : path + ".") + std::to_string(at);
  }

  void value(const IValue& value, const std::string& path, int depth) {
    if (depth > MOST_NESTED) throw Refusal("the model returned a value nested more than 64 deep");
    if (value.isNone()) return;
    if (value.isTensor()) return tensor(value.toTensor(), called(path));
    if (value.isInt()) return tensor(at::scalar_tensor(value.toInt(), at::kLong), called(path));
    if (value.isDouble()) return tensor(at::scalar_tensor(value.toDouble(), at::kDouble), called(path));
    if (value.isBool()) return tensor(at::scalar_tensor(value.toBool(), at::kBool), called(path));
    if (value.isIntList()) return tensor(at::tensor(value.toIntVector(), at::kLong), called(path));
    if (value.isDoubleList()) return tensor(at::tensor(value.toDoubleVector(), at::kDouble), called(path));
    if (value.isBoolList()) {
      auto list = value.toBoolList();
      auto whole = at::empty({static_cast<int64_t>(list.size())}, at::kBool);
      for (size_t i = 0; i < list.size(); ++i) whole.data_ptr<bool>()[i] = list.get(i);
      return tensor(whole, called(path));
    }
    if (value.isTuple()) {
      const auto& items = value.toTupleRef().elements();
      for (size_t i = 0; i < items.size(); ++i) this->value(items[i], item(path, i), depth + 1);
      return;
    }
    if (value.isList()) {
      auto items = value.toListRef();
      for (size_t i = 0; i < items.size(); ++i) this->value(items[i], item(path, i), depth + 1);
      return;
    }
    if (value.isGenericDict()) {
      for (const auto& entry : value.toGenericDict()) {
        const auto& key = entry.key();
        if (!key.isString() && !key.isInt()) throw Refusal("the model returned a dict whose keys are not strings");
        std::string name = key.isString() ? key.toStringRef() : std::to_string(key.toInt());
        this->value(entry.value(), path.empty() ? name : path + "." + name, depth + 1);
      }
      return;
    }
    throw Refusal(
        "the model returned a value of type " + value.type()->repr_str() + " as " + called(path) +
        ": only tensors and numbers can be sent");
  }

  void tensor(at::Tensor tensor, const std::string& name) {
    auto refuse = [&](const std::string& what) { throw Refusal("output '" + name + "' is " + what); };
    if (!tensor.defined()) refuse("a tensor that was never made");
    if (tensor.is_nested()) refuse("a nested tensor: pad it in the model (to_padded_tensor)");
    if (tensor.layout() == at::kMkldnn) refuse("a oneDNN tensor: call to_dense() in the model");
    if (tensor.layout() != at::kStrided) refuse("a sparse tensor: call to_dense() in the model");
    if (tensor.is_meta()) refuse("a tensor on device 'meta', which holds no values");
    if (tensor.is_quantized()) refuse("a quantized tensor: call dequantize() in the model");
    const auto dtype = tensor.scalar_type();
    switch (dtype) {
      case at::kBool:
      case at::kByte:
      case at::kChar:
      case at::kShort:
      case at::kInt:
      case at::kLong:
      case at::kHalf:
      case at::kBFloat16:
      case at::kFloat:
      case at::kDouble:
        break;
      default:
        if (at::isComplexType(dtype)) {
          refuse("of complex numbers (" + std::string(c10::toString(dtype)) + "), which cannot be sent: call torch.view_as_real in the model");
        }
        refuse("of datatype " + std::string(c10::toString(dtype)) + ", which cannot be sent: convert it in the model");
    }
    // A lazy negation or conjugation, or a tensor of zeros without memory, is not yet in memory what it stands for.
    if (tensor._is_zerotensor()) tensor = at::zeros(tensor.sizes(), tensor.options());
    tensor = tensor.to(at::kCPU).resolve_conj().resolve_neg().contiguous();
    auto owned = std::make_unique<at::Tensor>(std::move(tensor));
    const Result result{
        name.data(), name.size(), owned.get(), static_cast<int32_t>(dtype), owned->sizes().data(), owned->sizes().size()};
    owned.release();
    sink(into, &result);
  }
};

// 0: it went well; 1: libtorch threw `error`; 2: `error` is plain. The caller frees `error`.
template <typename Work>
int guarded(char** error, Work work) {
  try {
    work();
    return 0;
  } catch (const Refusal& refusal) {
    *error = strdup(refusal.what());
    return 2;
  } catch (const std::exception& thrown) {
    *error = strdup(thrown.what());
  } catch (...) {
    *error = strdup("the model threw what is no exception");
  }
  return 1;
}

template <typename Visit>
void visit_constants(const torch::jit::Module& module, Visit visit) {
  for (const auto& part : module.modules()) {
    for (const auto& method : part.get_methods()) {
      auto* function = torch::jit::tryToGraphFunction(method.function());
      if (function == nullptr) continue;
      auto graph = function->graph();
      torch::jit::DepthFirstGraphNodeIterator nodes(graph);
      for (auto* node = nodes.next(); node != nullptr; node = nodes.next()) visit(node);
    }
  }
}

}  // namespace

extern "C" {

// Once, before anything else.
void torchlane_begin(Ear to) {
  ear = to;
  torch::jit::setPrintHandler([](const std::string& text) { ear(0, text.data(), text.size()); });
  clean_state();
}

void torchlane_free_error(char* error) { std::free(error); }

// `device` is the first device other than the CPU that the code names; the caller frees it like an error.
int torchlane_load(const char* path, Model** model, char** device, char** error) {
  return guarded(error, [&] {
    CleanThread clean;
    auto module = torch::jit::load(path, at::kCPU);
    module.eval();
    auto type = module.type();
    bool hooked = !type->getForwardPreHooks().empty() || !type->getForwardHooks().empty();
    bool seeds = false;
    std::string named;
    visit_constants(module, [&](torch::jit::Node* node) {
      seeds |= node->kind() == c10::Symbol::fromQualString("aten::manual_seed");
      if (node->kind() != torch::jit::prim::Constant || node->outputs().size() != 1) return;
      if (node->output()->type()->kind() != c10::TypeKind::DeviceObjType) return;
      auto value = torch::jit::toIValue(node->output());
      if (named.empty() && value && value->isDevice() && !value->toDevice().is_cpu()) named = value->toDevice().str();
    });
    auto forward = module.get_method("forward");
    *model = new Model{std::move(module), std::move(forward), hooked, seeds};
    *device = named.empty() ? nullptr : strdup(named.c_str());
  });
}

void torchlane_free(Model* model) { delete model; }

int torchlane_run(
    Model* model,
    const Arg* args,
    size_t arg_count,
    at::Tensor* const* leaves,
    size_t leaf_count,
    Sink sink,
    void* into,
    char** error) {
  return guarded(error, [&] {
    IValue result;
    {
      CleanThread clean(model->seeds);
      Args given{args, args + arg_count, leaves, leaf_count};
      auto inputs = given.inputs(model->forward.function().getSchema());
      result = model->hooked ? torch::jit::Module(model->module)(std::move(inputs)) : model->forward(std::move(inputs));
    }
    Results{sink, into}.value(result, "", 0);
  });
}

}  // extern "C"
