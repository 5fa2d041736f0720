// Tables of all kernels. The build writes their source file, with a line for each cell and instruction set.
#pragma once

#include "cpu/args.h"
#include "cpu/plan.h"
#include "cpu/team.h"
#include "cpu/workspace.h"

namespace fastrnn {

struct RegistryEntry {
  const char* cell;
  const char* capability;  // baseline, avx2, avx512, avx512_bf16, amx
  const CellKernels* (*kernels)();
};

// Number of what kernels in other shared objects share with the library; a program that holds only a cell's name loads
// any of its cached kernels. A change that leaves all sizes as they are increments the version.
constexpr int kInterfaceVersion = 9;
constexpr int kCellInterface =
    kInterfaceVersion +
    16 * static_cast<int>(sizeof(ForwardArgs) +
                          31 * (sizeof(BackwardArgs) +
                                31 * (sizeof(CellKernels) +
                                      31 * (sizeof(Workspace) + sizeof(Plan) + sizeof(StepWork) + sizeof(Member)))));

extern const RegistryEntry kRegistry[];  // ends with a null cell

struct ProductEntry {
  const char* capability;
  const ProductKernels* (*kernels)();
};

extern const ProductEntry kProducts[];  // one for each capability

}  // namespace fastrnn

#define FASTRNN_DECLARE_CELL(cell, isa) \
  namespace fastrnn::isa {              \
  const CellKernels* cell##_kernels();  \
  }
#define FASTRNN_REGISTRY_BEGIN \
  namespace fastrnn {          \
  const RegistryEntry kRegistry[] = {
#define FASTRNN_REGISTER_CELL(cell, isa) {#cell, #isa, &isa::cell##_kernels},
#define FASTRNN_REGISTRY_END  \
  {                           \
    nullptr, nullptr, nullptr \
  }                           \
  }                           \
  ;                           \
  }

#define FASTRNN_DECLARE_PRODUCTS(isa)      \
  namespace fastrnn::isa {                 \
  const ProductKernels* product_kernels(); \
  }
#define FASTRNN_PRODUCTS_BEGIN \
  namespace fastrnn {          \
  const ProductEntry kProducts[] = {
#define FASTRNN_REGISTER_PRODUCTS(isa) {#isa, &isa::product_kernels},
#define FASTRNN_PRODUCTS_END \
  }                          \
  ;                          \
  }
