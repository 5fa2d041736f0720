from fastrnn.inspect.flow import gradient_flow
from fastrnn.inspect.jacobian import jacobian, spectrum
from fastrnn.inspect.states import follow
