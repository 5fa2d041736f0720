// For wheels, in front of every source that calls the system (-include): names that newer glibc has given new versions
// are bound to the ones that glibc 2.28 has too. So a wheel that is built on a newer system loads on all that
// manylinux_2_28 stands for. In a container of manylinux_2_28 this changes nothing.
#pragma once

#include <features.h>

#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 29)

#if defined(__x86_64__)
#define FASTRNN_OLDEST_GLIBC "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define FASTRNN_OLDEST_GLIBC "GLIBC_2.17"
#endif

#if defined(FASTRNN_OLDEST_GLIBC)
#define FASTRNN_BIND(name) __asm__(".symver " #name "," #name "@" FASTRNN_OLDEST_GLIBC)
FASTRNN_BIND(dladdr);
FASTRNN_BIND(dlerror);
FASTRNN_BIND(dlopen);
FASTRNN_BIND(dlsym);
FASTRNN_BIND(pthread_mutex_trylock);
#undef FASTRNN_BIND
#endif

// libstdc++ reads it to leave out atomic operations while there is one thread; glibc 2.28 has no such variable.
extern "C" __attribute__((weak, visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;

#endif
