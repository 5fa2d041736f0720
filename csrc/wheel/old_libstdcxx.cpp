// For wheels, linked into every module: functions that newer releases of libstdc++ export and that of gcc 8, which
// manylinux_2_28 promises, does not, made of ones that it has. They are hidden, so they serve the module alone. In a
// container of manylinux_2_28 its compiler brings the like, and this file has nothing to do.
#include <exception>
#include <new>
#include <sstream>
#include <string>

#if defined(_GLIBCXX_RELEASE) && _GLIBCXX_RELEASE >= 9

#define FASTRNN_AS(name) __asm__(name) __attribute__((visibility("hidden")))

namespace {
using Buffer = std::stringbuf;
using Pointer = std::exception_ptr;
}  // namespace

// std::__throw_bad_array_new_length, since gcc 11
[[noreturn]] void fastrnn_bad_length() FASTRNN_AS("_ZSt28__throw_bad_array_new_lengthv");
void fastrnn_bad_length() { throw std::bad_array_new_length(); }

// stringbuf::str() of lvalues and of rvalues, since gcc 11
std::string fastrnn_str(const Buffer* self) __asm__("_ZNKSt7__cxx1115basic_stringbufIcSt11char_traitsIcESaIcEE3strEv");
std::string fastrnn_str_of_lvalue(const Buffer* self)
    FASTRNN_AS("_ZNKRSt7__cxx1115basic_stringbufIcSt11char_traitsIcESaIcEE3strEv");
std::string fastrnn_str_of_lvalue(const Buffer* self) { return fastrnn_str(self); }
std::string fastrnn_str_of_rvalue(Buffer* self)
    FASTRNN_AS("_ZNOSt7__cxx1115basic_stringbufIcSt11char_traitsIcESaIcEE3strEv");
std::string fastrnn_str_of_rvalue(Buffer* self) { return fastrnn_str(self); }

// ostringstream(), since gcc 9
void fastrnn_open(void* self, std::ios_base::openmode mode) __asm__(
    "_ZNSt7__cxx1119basic_ostringstreamIcSt11char_traitsIcESaIcEEC1ESt13_Ios_Openmode");
void fastrnn_open_default(void* self) FASTRNN_AS("_ZNSt7__cxx1119basic_ostringstreamIcSt11char_traitsIcESaIcEEC1Ev");
void fastrnn_open_default(void* self) { fastrnn_open(self, std::ios_base::out); }

// exception_ptr's count, exported since gcc 11: a copy that is not destroyed adds one, a destructor takes one.
void fastrnn_copy(void* copy, const void* self) __asm__("_ZNSt15__exception_ptr13exception_ptrC1ERKS0_");
void fastrnn_destroy(void* self) __asm__("_ZNSt15__exception_ptr13exception_ptrD1Ev");
void fastrnn_add_reference(void* self) FASTRNN_AS("_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv");
void fastrnn_add_reference(void* self) {
  alignas(Pointer) unsigned char copy[sizeof(Pointer)];
  fastrnn_copy(copy, self);
}
void fastrnn_release(void* self) FASTRNN_AS("_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv");
void fastrnn_release(void* self) {
  fastrnn_destroy(self);
  *static_cast<void**>(self) = nullptr;
}

#endif
