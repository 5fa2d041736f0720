// Ends the region that target_on.h began.
#ifdef FASTRNN_TARGET
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
