#include "binding/node.h"

#include <torch/csrc/autograd/saved_variable.h>

#include <type_traits>

namespace fastrnn {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::CppNode;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

using NodePointer = decltype(torch::autograd::Edge::function);  // which smart pointer depends on torch's version

template <class T>
auto make_node() {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<Node>>) {
    return std::shared_ptr<T>(new T(), [](T* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<T>();
  }
}

// For the compiler of backward passes alone (torch._dynamo.compiled_autograd), which torch tells how to treat a
// Function in C++: a node of this kind then stands in for ours.
struct Layer : torch::autograd::Function<Layer> {
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    auto& data = ctx->saved_data;
    const int64_t form = data["form"].toInt();
    LayerCall call{data["cell"].toStringRef(), data["reverse"].toBool(), {}, {}, {}, {}, {}};
    call.form = {(form & 1) != 0, (form & 2) != 0, (form & 4) != 0, (form & 8) != 0};
    return layer_gradients(
        std::move(call), static_cast<size_t>(data["inputs"].toInt()), ctx->get_saved_variables(),
        data["watched"].toTensor()._version() != 0, [&](size_t edge) { return ctx->needs_input_grad(edge); }, grads);
  }
};

struct LayerNode : Node {
  LayerCall call{};  // without its tensors
  size_t inputs = 0;
  std::vector<SavedVariable> saved;
  c10::VariableVersion watched;  // y's own: tells whether the caller has changed it
  mutable NodePointer stand_in;

  std::string name() const override { return "FastrnnLayerBackward"; }

  variable_list unpacked() {
    variable_list tensors;
    tensors.reserve(saved.size());
    for (const SavedVariable& s : saved) tensors.push_back(s.unpack(getptr()));
    return tensors;
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const variable_list tensors = unpacked();
    return layer_gradients(
        call, inputs, tensors, watched.current_version() != 0,
        [this](size_t edge) { return task_should_compute_output(edge); }, grads);
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& s : saved) s.reset_data();
    stand_in = nullptr;
  }

  CppNode<Layer>& function() const {
    if (stand_in != nullptr) return static_cast<CppNode<Layer>&>(*stand_in);
    auto node = make_node<CppNode<Layer>>();
    node->set_ctx_grad_fn(node);
    node->set_next_edges(torch::autograd::edge_list(next_edges()));
    node->is_variable_input_.assign(next_edges().size(), true);
    const Form& f = call.form;
    auto& data = node->ctx_.saved_data;
    data["cell"] = call.cell;
    data["reverse"] = call.reverse;
    data["form"] = static_cast<int64_t>(f.batch_first | f.no_steps << 1 | f.no_batch << 2 | f.layered << 3);
    data["inputs"] = static_cast<int64_t>(inputs);
    variable_list tensors = const_cast<LayerNode*>(this)->unpacked();
    Tensor version = at::empty({0}, tensors[2].options().requires_grad(false));
    torch::autograd::impl::set_version_counter(version, watched);
    data["watched"] = version;
    node->ctx_.set_materialize_grads(false);
    node->ctx_.save_for_backward(std::move(tensors));
    node->save_variables_to_ctx();
    stand_in = node;
    return static_cast<CppNode<Layer>&>(*stand_in);
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override { function().compiled_args(args); }
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    return function().apply_with_saved(grads, swap);
  }
};

}  // namespace

void record_layer(LayerCall call, Tensors& outputs, const Tensor& kept, const Tensors& reserve) {
  auto node = make_node<LayerNode>();
  node->inputs = call.inputs.size();
  node->saved.reserve(call.inputs.size() + 4 + reserve.size());
  torch::autograd::edge_list edges;
  edges.reserve(call.inputs.size());
  const auto save = [&](const Tensor& t) {
    if (t.defined()) {
      node->saved.emplace_back(t, false);
    } else {
      node->saved.emplace_back();
    }
  };
  for (const Tensor& t : call.inputs) {
    save(t);
    if (t.defined()) edges.push_back(torch::autograd::impl::gradient_edge(t));
  }
  for (const OptionalTensor& t : {call.batch_sizes, call.lengths, call.reset}) save(t.value_or(Tensor()));
  save(kept);
  for (const Tensor& t : reserve) save(t);
  call.inputs.clear();
  call.batch_sizes = call.lengths = call.reset = std::nullopt;
  node->call = std::move(call);
  node->set_next_edges(std::move(edges));
  node->watched = torch::autograd::impl::version_counter(outputs[0]);
  for (Tensor& t : outputs) torch::autograd::create_gradient_edge(t, node);
}

}  // namespace fastrnn
