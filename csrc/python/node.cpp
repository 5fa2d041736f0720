#include "python/node.h"

#include <ATen/SavedTensorHooks.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <array>
#include <type_traits>

#include "cpu/dispatch.h"

namespace fastrnn {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::CppNode;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

using NodePointer = decltype(torch::autograd::Edge::function);  // the kind of smart pointer depends on torch's version

template <class T>
auto make_node() {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<Node>>) {
    return std::shared_ptr<T>(new T(), [](T* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<T>();
  }
}

// Saved after the inputs: batch_sizes, lengths, reset, y, and the forward pass's saved tensors
constexpr size_t kSavedBesides = 4 + kSavedTensors;

// Only for compiled autograd (torch._dynamo.compiled_autograd), which can trace a C++ Function: a node of this class
// replaces ours. Strings, bools and floats of saved_data are constants of the traced graph; an integer would become a
// symbol.
struct Layer : torch::autograd::Function<Layer> {
  // While traced, `backward` gets fake tensors. It reads no values and calls the operators through the dispatcher.
  static constexpr bool is_traceable = true;

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const at::NoGradGuard no_grad;  // compiled autograd has no create_graph
    auto& data = ctx->saved_data;
    grads.resize(1 + static_cast<size_t>(find_cell(data["cell"].toStringRef().c_str())->states));
    const variable_list saved = ctx->get_saved_variables();
    EagerCall call;
    call.cell = data["cell"].toStringRef();
    call.reverse = data["reverse"].toBool();
    call.clip = data["clip"].toDouble();
    call.restarts = data["restarts"].toStringRef().size();
    call.caller = {data["batch_first"].toBool(), data["no_steps"].toBool(), data["no_batch"].toBool(),
                   data["layered"].toBool()};
    return layer_gradients(
        std::move(call), saved.size() - kSavedBesides, saved, data["changed"].toBool(),
        [&](size_t edge) { return ctx->needs_input_grad(edge); }, grads);
  }
};

// Return true if the first derivative needs the value of input k: x for that of w_ih, w_ih for that of x, biases never.
bool is_read(const Tensors& inputs, size_t k) {
  if (k == 0) return inputs[1].defined() && inputs[1].requires_grad();
  if (k == 1) return inputs[0].requires_grad();
  return k != 3 && k != 4;
}

// An input that the first derivative does not read. torch.nn does not save it, so changing it in place must not raise;
// other readers must find the old values.
struct Unread {
  Tensor tensor;
  uint32_t version = 0;

  // A leaf that requires a gradient is stored itself. For any other tensor only the memory is stored: after a change in
  // place it may depend on the output, and would then own the node that owns it.
  void save(const Tensor& t) {
    const auto& counter = t.unsafeGetTensorImpl()->version_counter();
    version = t.is_inference() ? 0 : counter.current_version();
    tensor =
        t.requires_grad() && t.is_leaf() ? t : Tensor(t.getIntrusivePtr()->shallow_copy_and_detach(counter, false));
  }

  // The saved value, or an error if it has changed. `edge`: the target of its gradient.
  Tensor unpack(size_t k, const torch::autograd::Edge& edge) const {
    constexpr std::array<const char*, kFixedInputs> kNames{"x", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr"};
    constexpr const char* kWhy = ". It is needed where gradients are differentiated, or an output was changed in place";
    TORCH_CHECK(!tensor.is_inference(), "Inference tensors cannot be saved for backward: ", kNames[k], " is one", kWhy);
    const uint32_t now = tensor.unsafeGetTensorImpl()->version_counter().current_version();
    TORCH_CHECK(now == version,
                "one of the variables needed for gradient computation has been modified by an inplace operation: ",
                kNames[k], " ", tensor.sizes(), " is at version ", now, "; expected version ", version, kWhy);
    if (tensor.requires_grad() || edge.function == nullptr) return tensor;
    Tensor tracked = torch::autograd::make_variable(tensor, edge, false);
    torch::autograd::impl::set_version_counter(tracked, torch::autograd::impl::version_counter(tensor));
    return tracked;
  }
};

struct LayerNode : Node {
  EagerCall call{};  // without its tensors
  size_t inputs = 0, outputs = 0;
  std::vector<SavedVariable> saved;         // empty for an unread input
  std::array<Unread, kFixedInputs> unread;  // empty for a saved one
  c10::VariableVersion watched;             // version counter of y, to detect changes by the caller
  mutable NodePointer stand_in;

  std::string name() const override { return "FastrnnLayerBackward"; }

  // `all`: unpack unread inputs too.
  variable_list unpacked(bool all) {
    variable_list tensors;
    tensors.reserve(saved.size());
    size_t edge = 0;
    for (size_t k = 0; k < saved.size(); ++k) {
      if (k < kFixedInputs && unread[k].tensor.defined()) {
        tensors.push_back(all ? unread[k].unpack(k, next_edge(edge)) : unread[k].tensor);
      } else {
        tensors.push_back(saved[k].unpack(getptr()));
      }
      if (k < inputs && tensors.back().defined()) ++edge;
    }
    return tensors;
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool changed = watched.current_version() != 0;
    grads.resize(outputs);
    const variable_list tensors = unpacked(reads_all_inputs(grads, changed));
    return layer_gradients(
        call, inputs, tensors, changed, [this](size_t edge) { return task_should_compute_output(edge); }, grads);
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& s : saved) s.reset_data();
    unread = {};
    stand_in = nullptr;
  }

  CppNode<Layer>& function() const {
    if (stand_in != nullptr) return static_cast<CppNode<Layer>&>(*stand_in);
    auto node = make_node<CppNode<Layer>>();
    node->set_ctx_grad_fn(node);
    node->set_next_edges(torch::autograd::edge_list(next_edges()));
    node->is_variable_input_.assign(next_edges().size(), true);
    const bool changed = watched.current_version() != 0;
    auto& data = node->ctx_.saved_data;
    data["cell"] = call.cell;
    data["reverse"] = call.reverse;
    data["clip"] = call.clip;
    data["restarts"] = std::string(call.restarts, '+');
    data["batch_first"] = call.caller.batch_first;
    data["no_steps"] = call.caller.no_steps;
    data["no_batch"] = call.caller.no_batch;
    data["layered"] = call.caller.layered;
    data["changed"] = changed;
    node->ctx_.set_materialize_grads(false);
    node->ctx_.save_for_backward(const_cast<LayerNode*>(this)->unpacked(changed));
    node->save_variables_to_ctx();
    stand_in = node;
    return static_cast<CppNode<Layer>&>(*stand_in);
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    stand_in = nullptr;  // y may have changed since the last backward pass
    function().compiled_args(args);
  }
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    return function().apply_with_saved(grads, swap);
  }
};

// Return true if only y and h depend on inputs that require a gradient: the projection alone does, which does not
// affect the other states within a single step.
bool depends_by_hidden_alone(const EagerCall& call) {
  if (!call.w_hr().defined() || !is_single_step(call)) return false;
  for (size_t k = 0; k < call.inputs.size(); ++k) {
    if (k != kWHr && call.inputs[k].defined() && call.inputs[k].requires_grad()) return false;
  }
  return true;
}

}  // namespace

void record_layer(EagerCall call, Tensors& outputs, const Tensor& own_y, const Tensors& saved) {
  auto node = make_node<LayerNode>();
  node->inputs = call.inputs.size();
  node->saved.reserve(call.inputs.size() + kSavedBesides);
  torch::autograd::edge_list edges;
  edges.reserve(call.inputs.size());
  const auto save = [&](const Tensor& t) {
    if (t.defined()) {
      node->saved.emplace_back(t, false);
    } else {
      node->saved.emplace_back();
    }
  };
  // Small tensors, sometimes created in inference mode, where changes are not tracked: cloned.
  const auto save_own = [&](const Tensor& t) { save(t.defined() && t.is_inference() ? t.clone() : t); };
  // With hooks for saved tensors everything must be saved.
  const bool hooks = at::SavedTensorDefaultHooks::get_hooks().has_value();
  for (size_t k = 0; k < call.inputs.size(); ++k) {
    const Tensor& t = call.inputs[k];
    if (t.defined()) edges.push_back(torch::autograd::impl::gradient_edge(t));
    if (t.defined() && !is_read(call.inputs, k) && (!hooks || t.is_inference())) {
      node->unread[k].save(t);
      node->saved.emplace_back();
    } else if (k < kFixedInputs) {
      save(t);
    } else {
      save_own(t);
    }
  }
  for (const OptionalTensor& t : {call.batch_sizes, call.lengths, call.reset}) save_own(t.value_or(Tensor()));
  save(own_y);
  for (const Tensor& t : saved) save(t);
  const size_t differentiable = depends_by_hidden_alone(call) ? 2 : outputs.size();  // only y and h
  call.inputs.clear();
  call.batch_sizes = call.lengths = call.reset = std::nullopt;
  node->call = std::move(call);
  node->set_next_edges(std::move(edges));
  node->watched = torch::autograd::impl::version_counter(outputs[0]);
  node->outputs = outputs.size();
  for (size_t k = 0; k < differentiable; ++k) torch::autograd::create_gradient_edge(outputs[k], node);
}

}  // namespace fastrnn
